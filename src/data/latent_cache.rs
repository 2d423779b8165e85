//! Latents of a whole data set in one file: what train-gen reads instead of running the encoder.
//!
//! The file is a safetensors file: `latents` BF16 [F,N,h,w,d] (before noise; with flips F is 2, and
//! the second half is of the mirrored images, see [`Augment::flips`](super::Augment::flips)),
//! `labels` U32 [N]. Its metadata tie it to what it was made from: `format`, `tokenizer` (SHA-256
//! of its file), `data` (fingerprint of the source), `image_size`, `flip`, and `sha256` of all
//! bytes after the header, which is checked on opening.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use candle_core::{DType, Tensor};
use half::bf16;
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use sha2::{Digest, Sha256};

use super::transient::{Patient, patiently};
use crate::error::{Context, Error, Result, hinted};
use crate::store::bundle::check_format;
use crate::store::digest::hex;
use crate::store::safetensors::Reader;
use crate::store::{atomic, foreign};

const FORMAT: &str = "rdpm-latents/1";

/// Bytes of the length and the header together. The header is written last, when N and the checksum
/// are known.
const HEADER: usize = 1024;

/// What a cache is made from; a cache with another answer is stale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheMeta {
    /// SHA-256 of the tokenizer's file, hexadecimal.
    pub tokenizer: String,
    /// [`Source::fingerprint`](super::Source::fingerprint) of the images.
    pub data: String,
    pub image_size: usize,
    /// Whether it holds the mirrored images too.
    pub flip: bool,
    /// [h,w,d]
    pub shape: [usize; 3],
}

impl CacheMeta {
    /// F: how often an image is in it.
    fn copies(&self) -> usize {
        1 + usize::from(self.flip)
    }
}

/// An open cache.
#[derive(Debug)]
pub struct LatentCache {
    path: PathBuf,
    /// Another one once a file server no longer knows the first.
    file: RwLock<Arc<File>>,
    /// What any file at `path` must begin with to be this one: its checksum is in it.
    header: Vec<u8>,
    labels: Vec<u32>,
    /// Values of one latent: h·w·d.
    size: usize,
}

impl LatentCache {
    /// Writes a cache and opens it. `blocks` yields latents [n,h,w,d] (f32 or bf16) with their
    /// labels [n]: first all images in the source's order, then, with flips, all mirrored images in
    /// the same order.
    ///
    /// The file appears when it is whole. Errors: those of `blocks`, a block of another shape, a
    /// full disk.
    pub fn create(
        path: &Path,
        meta: &CacheMeta,
        blocks: impl IntoIterator<Item = Result<(Tensor, Vec<u32>)>>,
    ) -> Result<Self> {
        atomic::write_with(path, |file| {
            file.write_all(&[b' '; HEADER])?;
            let (mut digest, mut labels) = (Sha256::new(), Vec::new());
            for block in blocks {
                let (latents, block_labels) = block?;
                let bytes = to_bytes(&latents, &block_labels, meta)?;
                digest.update(&bytes);
                file.write_all(&bytes)?;
                labels.extend(block_labels);
            }
            let count = labels.len() / meta.copies();
            if count == 0 {
                return Err(hinted(
                    "no image could be encoded",
                    "the warnings above say why; name other images",
                ));
            }
            if meta.flip && labels[..count] != labels[count..] {
                return Err(hinted(
                    "the mirrored images are not those of the first half",
                    "",
                ));
            }
            let bytes: Vec<u8> = labels[..count]
                .iter()
                .flat_map(|l| l.to_le_bytes())
                .collect();
            digest.update(&bytes);
            file.write_all(&bytes)?;
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&header(meta, count, &hex(&digest.finalize()))?)?;
            Ok(())
        })?;
        Self::open(path, meta)
    }

    /// Opens the cache at `path`, made from `expected`.
    ///
    /// Errors: a stale cache, with what differs; one of another format; a truncated or damaged one.
    pub fn open(path: &Path, expected: &CacheMeta) -> Result<Self> {
        let name = path.display();
        let file = File::open(path).with_context(|| format!("could not open {name}"))?;
        let reading = || format!("could not read {name}");
        let length = file.metadata().with_context(reading)?.len();
        let damaged = |what: &dyn std::fmt::Display| {
            refused(path, format!("not a whole latent cache ({what})"))
        };
        let mut rest = Patient {
            inner: &file,
            what: &name,
        };
        let mut header = Vec::new();
        let read = rest.by_ref().take(HEADER as u64).read_to_end(&mut header);
        read.with_context(reading)?;
        let is_ours = header.first_chunk() == Some(&((HEADER - 8) as u64).to_le_bytes());
        let found = header.get(8..).filter(|_| is_ours);
        let found = found.and_then(|json| serde_json::from_slice::<Metadata>(json).ok());
        let found = match found {
            Some(found) => found,
            None => {
                another_kind(path)?;
                return Err(damaged(&"its header is not one"));
            }
        };
        let metadata = found.metadata().clone().unwrap_or_default();
        let format = metadata.get("format").map(String::as_str);
        check_format(path, format, FORMAT)?;
        compare(path, &metadata, expected)?;
        let info = |tensor| {
            let info = found.info(tensor);
            info.ok_or_else(|| damaged(&format!("it has no `{tensor}`")))
        };
        let (latents, labels) = (info("latents")?, info("labels")?);
        let (h_w_d, count) = (expected.shape, labels.shape.first().copied().unwrap_or(0));
        let shape = [expected.copies(), count, h_w_d[0], h_w_d[1], h_w_d[2]];
        let size: usize = h_w_d.iter().product();
        if latents.dtype != Dtype::BF16 || labels.dtype != Dtype::U32 || latents.shape != shape {
            let found = format!(
                "{:?} {:?}, expected BF16 {shape:?}",
                latents.dtype, latents.shape
            );
            return Err(refused(path, format!("its latents are {found}")));
        }
        let end = latents.data_offsets.1;
        if header.len() < HEADER
            || latents.data_offsets != (0, shape.iter().product::<usize>() * 2)
            || labels.data_offsets != (end, end + count * 4)
            || length != (HEADER + end + count * 4) as u64
        {
            return Err(damaged(&format!("it has {length} bytes")));
        }
        let (mut digest, mut piece) = (Sha256::new(), vec![0; 1 << 20]);
        let (mut labels, mut at) = (Vec::new(), 0);
        loop {
            let read = rest.read(&mut piece).with_context(reading)?;
            if read == 0 {
                break;
            }
            digest.update(&piece[..read]);
            labels.extend_from_slice(&piece[read.min(end.saturating_sub(at))..read]);
            at += read;
        }
        if Some(&hex(&digest.finalize())) != metadata.get("sha256") {
            return Err(damaged(&"its checksum differs"));
        }
        let (labels, _) = labels.as_chunks::<4>();
        Ok(Self {
            path: path.to_path_buf(),
            labels: labels.iter().map(|b| u32::from_le_bytes(*b)).collect(),
            file: RwLock::new(Arc::new(file)),
            header,
            size,
        })
    }

    /// Number of images N.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    pub fn label(&self, image: usize) -> u32 {
        self.labels[image]
    }

    /// Bytes of one latent.
    pub fn bytes_of_one(&self) -> usize {
        self.size * 2
    }

    /// Reads the latent [h,w,d] of `image` (or, in a cache with flips, of its mirror image): bf16,
    /// little-endian.
    pub fn read(&self, image: usize, mirrored: bool, out: &mut [u8]) -> Result<()> {
        assert_eq!(out.len(), self.bytes_of_one(), "bytes of a latent");
        assert!(image < self.len(), "image {image} of {}", self.len());
        let at = usize::from(mirrored) * self.len() + image;
        let at = (HEADER + at * self.bytes_of_one()) as u64;
        let name = self.path.display();
        patiently(&name, || {
            let file = self.file.read().unwrap_or_else(PoisonError::into_inner);
            let file = file.clone();
            let read = file.read_exact_at(out, at);
            if let Err(error) = &read
                && error.kind() == io::ErrorKind::StaleNetworkFileHandle
            {
                self.open_again()?;
            }
            read
        })
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => refused(
                &self.path,
                "it has become shorter since it was opened".to_string(),
            ),
            _ => Error::from(error).context(format!("could not read {name}")),
        })
    }

    /// Opens the file anew, if it is still the same.
    fn open_again(&self) -> io::Result<()> {
        let file = File::open(&self.path)?;
        let mut header = vec![0; HEADER];
        file.read_exact_at(&mut header, 0)?;
        if header != self.header {
            return Err(io::Error::other("another file has taken its place"));
        }
        *self.file.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(file);
        Ok(())
    }
}

/// Refuses a file that is something else by name: a hint to remove it would lose it.
fn another_kind(path: &Path) -> Result<()> {
    if foreign::of(path).is_some_and(|kind| kind != foreign::SAFETENSORS) {
        return foreign::refusal(path, "a cache of latents").map_or(Ok(()), Err);
    }
    match Reader::open(path).and_then(|reader| reader.header()) {
        Ok(header) => check_format(
            path,
            header.metadata.get("format").map(String::as_str),
            FORMAT,
        ),
        Err(_) => Ok(()),
    }
}

fn to_bytes(latents: &Tensor, labels: &[u32], meta: &CacheMeta) -> Result<Vec<u8>> {
    let [h, w, d] = meta.shape;
    if latents.dims() != [labels.len(), h, w, d] {
        let (found, expected) = (latents.dims(), [labels.len(), h, w, d]);
        return Err(hinted(
            format!("a block of latents is {found:?}, expected {expected:?}"),
            "",
        ));
    }
    let values: Vec<bf16> = latents.to_dtype(DType::BF16)?.flatten_all()?.to_vec1()?;
    Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// The first [`HEADER`] bytes: safetensors' length and JSON, padded with blanks.
fn header(meta: &CacheMeta, count: usize, sha256: &str) -> io::Result<Vec<u8>> {
    let [h, w, d] = meta.shape;
    let copies = meta.copies();
    let (latents, labels) = (copies * count * h * w * d * 2, count * 4);
    let json = serde_json::json!({
        "__metadata__": {
            "format": FORMAT,
            "tokenizer": meta.tokenizer,
            "data": meta.data,
            "image_size": meta.image_size.to_string(),
            "flip": meta.flip.to_string(),
            "sha256": sha256,
        },
        "latents": {"dtype": "BF16", "shape": [copies, count, h, w, d], "data_offsets": [0, latents]},
        "labels": {"dtype": "U32", "shape": [count], "data_offsets": [latents, latents + labels]},
    });
    let mut bytes = ((HEADER - 8) as u64).to_le_bytes().to_vec();
    bytes.extend(json.to_string().into_bytes());
    if bytes.len() > HEADER {
        return Err(io::Error::other(format!(
            "the header takes {} bytes",
            bytes.len()
        )));
    }
    bytes.resize(HEADER, b' ');
    Ok(bytes)
}

fn compare(path: &Path, metadata: &HashMap<String, String>, expected: &CacheMeta) -> Result<()> {
    let size = expected.image_size.to_string();
    let flip = expected.flip.to_string();
    let pairs = [
        ("tokenizer", expected.tokenizer.as_str()),
        ("data", expected.data.as_str()),
        ("image_size", size.as_str()),
        ("flip", flip.as_str()),
    ];
    for (key, expected) in pairs {
        let found = metadata.get(key).map_or("none", String::as_str);
        if found != expected {
            return Err(refused(
                path,
                format!("stale: its {key} is {found}, expected {expected}"),
            ));
        }
    }
    Ok(())
}

fn refused(path: &Path, what: String) -> Error {
    hinted(
        format!("{}: {what}", path.display()),
        "remove the file, or name another with --cache: it is made again",
    )
}

#[cfg(test)]
pub(super) mod tests;
