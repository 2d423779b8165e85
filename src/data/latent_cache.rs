//! Latents of a whole data set in one file: what train-gen reads instead of running the encoder.
//!
//! The file is a safetensors file: `latents` BF16 [F,N,h,w,d] (before noise; with flips F is 2, and the second half is of
//! the mirrored images, see [`Augment::flips`](super::Augment::flips)), `labels` U32 [N]. Its metadata tie it to what it
//! was made from: `format`, `tokenizer` (SHA-256 of its file), `data` (fingerprint of the source), `image_size`, `flip`,
//! and `sha256` of all bytes after the header, which is checked on opening.

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

/// Bytes of the length and the header together. The header is written last, when N and the checksum are known.
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
    /// Writes a cache and opens it. `blocks` yields latents [n,h,w,d] (f32 or bf16) with their labels [n]: first all
    /// images in the source's order, then, with flips, all mirrored images in the same order.
    ///
    /// The file appears when it is whole. Errors: those of `blocks`, a block of another shape, a full disk.
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
pub(super) mod tests {
    use super::*;
    use candle_core::Device;

    pub fn meta() -> CacheMeta {
        CacheMeta {
            tokenizer: "ab".repeat(32),
            data: "cd".repeat(32),
            image_size: 64,
            flip: true,
            shape: [2, 3, 4],
        }
    }

    /// Five images in blocks of 3 and 2, twice; image i of flip f holds 100·f + i, label i + 7.
    fn blocks() -> Vec<Result<(Tensor, Vec<u32>)>> {
        let block = |flip: u32, images: std::ops::Range<u32>| {
            let values: Vec<f32> = images
                .clone()
                .flat_map(|i| [(100 * flip + i) as f32; 24])
                .collect();
            let shape = (images.len(), 2, 3, 4);
            Ok((
                Tensor::from_vec(values, shape, &Device::Cpu)?,
                images.map(|i| i + 7).collect(),
            ))
        };
        vec![
            block(0, 0..3),
            block(0, 3..5),
            block(1, 0..3),
            block(1, 3..5),
        ]
    }

    /// A cache of [`blocks`], made at `path`.
    pub fn cache(path: &Path) -> LatentCache {
        LatentCache::create(path, &meta(), blocks()).unwrap()
    }

    fn read(cache: &LatentCache, image: usize, mirrored: bool) -> Vec<f32> {
        let mut bytes = vec![0; cache.bytes_of_one()];
        cache.read(image, mirrored, &mut bytes).unwrap();
        let (pairs, _) = bytes.as_chunks::<2>();
        let values = pairs.iter().map(|pair| bf16::from_le_bytes(*pair).to_f32());
        values.collect()
    }

    #[test]
    fn what_was_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("latents");
        let cache = LatentCache::create(&path, &meta(), blocks()).unwrap();
        assert_eq!(cache.len(), 5);
        for (i, flip) in [(0, false), (4, false), (0, true), (3, true)] {
            let expected = [(100 * u32::from(flip) + i as u32) as f32; 24];
            assert_eq!(read(&cache, i, flip), expected);
            assert_eq!(cache.label(i), i as u32 + 7);
        }
        // Any reader of safetensors can read it.
        let tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        assert_eq!(tensors["latents"].dims(), [2, 5, 2, 3, 4]);
        assert_eq!(
            tensors["labels"].to_vec1::<u32>().unwrap(),
            [7, 8, 9, 10, 11]
        );
    }

    #[test]
    fn a_cache_of_no_images_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("latents");
        let error = LatentCache::create(&path, &meta(), Vec::new()).unwrap_err();
        assert!(error.to_string().contains("no image"), "{error}");
        assert!(!path.exists());
    }

    #[test]
    fn without_flips_every_image_is_in_it_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("latents");
        let meta = CacheMeta {
            flip: false,
            ..meta()
        };
        let cache = LatentCache::create(&path, &meta, blocks().into_iter().take(2)).unwrap();
        assert_eq!(cache.len(), 5);
        assert_eq!(read(&cache, 4, false), [4.0; 24]);
        assert_eq!(cache.label(4), 11);
    }

    #[test]
    fn a_stale_cache_is_refused_with_what_differs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("latents");
        LatentCache::create(&path, &meta(), blocks()).unwrap();
        let other = "ef".repeat(32);
        for (expected, what) in [
            (
                CacheMeta {
                    tokenizer: other.clone(),
                    ..meta()
                },
                "its tokenizer is abab",
            ),
            (
                CacheMeta {
                    data: other.clone(),
                    ..meta()
                },
                "its data is cdcd",
            ),
            (
                CacheMeta {
                    image_size: 32,
                    ..meta()
                },
                "its image_size is 64, expected 32",
            ),
            (
                CacheMeta {
                    flip: false,
                    ..meta()
                },
                "its flip is true, expected false",
            ),
            (
                CacheMeta {
                    shape: [2, 3, 8],
                    ..meta()
                },
                "[2, 5, 2, 3, 4], expected BF16 [2, 5, 2, 3, 8]",
            ),
        ] {
            let error = LatentCache::open(&path, &expected).unwrap_err().to_string();
            assert!(error.contains(what) && error.contains("latents"), "{error}");
        }
    }

    #[test]
    fn a_truncated_or_damaged_cache_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("latents");
        LatentCache::create(&path, &meta(), blocks()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let refuses = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let error = LatentCache::open(&path, &meta()).unwrap_err().to_string();
            assert!(error.contains("not a whole latent cache"), "{error}");
        };
        for length in [0, 7, 500, HEADER, whole.len() - 1] {
            refuses(&whole[..length]);
        }
        for at in [HEADER, whole.len() / 2, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            refuses(&bytes);
        }
    }

    #[test]
    fn a_file_that_is_something_else_is_named_and_not_to_be_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let refusal = || crate::error::report(&LatentCache::open(&path, &meta()).unwrap_err()).0;
        std::fs::write(&path, b"\x89PNG\r\n\x1a\n and more").unwrap();
        assert!(refusal().contains("is a PNG image; expected a cache of latents"));
        let metadata = [("format".to_string(), "rdpm-bundle/1".to_string())];
        let none = std::collections::BTreeMap::new();
        crate::store::safetensors::write(&path, &none, &metadata.into()).unwrap();
        let text = refusal();
        assert!(
            text.contains("is a bundle (rdpm-bundle/1)") && !text.contains("remove"),
            "{text}"
        );
    }

    #[test]
    fn a_cache_is_opened_again_only_as_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("latents");
        let cache = cache(&path);
        cache.open_again().unwrap();
        assert_eq!(read(&cache, 4, false), [4.0; 24]);
        let other = CacheMeta {
            data: "ef".repeat(32),
            ..meta()
        };
        LatentCache::create(&path, &other, blocks()).unwrap();
        let error = cache.open_again().unwrap_err();
        assert!(error.to_string().contains("another file"), "{error}");
    }

    #[test]
    fn an_interrupted_cache_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("latents");
        let mut stopped = blocks();
        stopped[2] = Err(hinted("path/3.jpg: bad", ""));
        let error = LatentCache::create(&path, &meta(), stopped).unwrap_err();
        assert_eq!(error.to_string(), "path/3.jpg: bad");
        let half = LatentCache::create(&path, &meta(), blocks().into_iter().take(3));
        assert!(half.unwrap_err().to_string().contains("mirrored"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
