//! A part of a cache of latents: a safetensors file with `latents` BF16 [F,n,h,w,d] (before noise;
//! with flips F is 2, and the second half is of the mirrored images, see
//! [`Augment::flips`](super::super::Augment::flips)), `labels` U32 [n] and `checksums` U32 [F,n],
//! the CRC-32 of each latent's bytes. Its metadata tie it to what it was made from.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use candle_core::{DType, Tensor};
use half::bf16;
use safetensors::tensor::Metadata;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::super::transient::patiently;
use super::{CacheMeta, Division, compare, refused, unreadable};
use crate::error::{Result, hinted};
use crate::store::atomic;
use crate::store::bundle::check_format;
use crate::store::digest::hex;

const FORMAT: &str = "rdpm-latents-part/2";

/// Bytes of the length and the header together. The header is written last, when n is known.
pub(super) const HEADER: usize = 1024;

/// A part, as `cache.json` lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// n
    pub images: usize,
    /// Of the file.
    pub bytes: u64,
    /// SHA-256 of the header, the labels and the checksums, which cover the latents.
    pub sha256: String,
}

/// A part that can be read.
#[derive(Debug)]
pub(super) struct Part {
    path: PathBuf,
    entry: Entry,
    copies: usize,
    bytes_of_one: usize,
    /// None before its first use.
    open: RwLock<Option<Arc<Open>>>,
}

/// An open part whose header and tables were checked.
#[derive(Debug)]
pub(super) struct Open {
    pub file: File,
    /// What any file at its path must begin with to be this one.
    pub header: Vec<u8>,
    pub labels: Vec<u32>,
    /// Of all latents, in the order of the file; version 1 has none.
    pub checksums: Option<Vec<u32>>,
}

impl Entry {
    /// Errors: the file at `path` is missing or has another size.
    pub fn check_size(&self, path: &Path) -> Result<()> {
        let found = patiently(&path.display(), || fs::metadata(path));
        match found.map(|file| file.len()) {
            Ok(found) if found == self.bytes => Ok(()),
            Ok(found) => Err(refused(
                path,
                format!(
                    "it has {found} bytes, expected {}: it is damaged",
                    self.bytes
                ),
            )),
            Err(error) => Err(unreadable(path, error)),
        }
    }
}

impl Part {
    pub fn new(path: PathBuf, entry: Entry, meta: &CacheMeta) -> Self {
        Self {
            path,
            entry,
            copies: meta.copies(),
            bytes_of_one: meta.bytes_of_one(),
            open: RwLock::default(),
        }
    }

    /// A part that is open.
    pub fn opened(self, open: Open) -> Self {
        Self {
            open: RwLock::new(Some(Arc::new(open))),
            ..self
        }
    }

    /// n
    pub fn images(&self) -> usize {
        self.entry.images
    }

    /// Reads the latent of the part's image number `image`, and returns its label.
    pub fn read(&self, image: usize, mirrored: bool, out: &mut [u8]) -> Result<u32> {
        let place = usize::from(mirrored) * self.entry.images + image;
        let at = (HEADER + place * self.bytes_of_one) as u64;
        let mut open = self.open()?;
        let read = patiently(&self.path.display(), || {
            let read = open.file.read_exact_at(out, at);
            if let Err(error) = &read
                && error.kind() == io::ErrorKind::StaleNetworkFileHandle
            {
                // Another one once a file server no longer knows the first.
                open = self.open_again(&open)?;
            }
            read
        });
        read.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => refused(
                &self.path,
                "it has become shorter since it was opened".to_string(),
            ),
            _ => unreadable(&self.path, error),
        })?;
        if let Some(checksums) = &open.checksums
            && checksums[place] != crc32fast::hash(out)
        {
            return Err(refused(
                &self.path,
                format!("it is damaged: the checksum of latent {place} differs"),
            ));
        }
        Ok(open.labels[image])
    }

    /// Reads and checks everything.
    pub fn verify(&self) -> Result<()> {
        let mut bytes = vec![0; self.bytes_of_one];
        for copy in 0..self.copies {
            for image in 0..self.entry.images {
                self.read(image, copy == 1, &mut bytes)?;
            }
        }
        Ok(())
    }

    /// Opens the file if it was not, and checks all of it but the latents.
    fn open(&self) -> Result<Arc<Open>> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = &*open {
            return Ok(open.clone());
        }
        drop(open);
        let mut slot = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = &*slot {
            return Ok(open.clone());
        }
        self.entry.check_size(&self.path)?;
        let layout = Layout {
            count: self.entry.images,
            copies: self.copies,
            bytes_of_one: self.bytes_of_one,
        };
        let read = patiently(&self.path.display(), || {
            let file = File::open(&self.path)?;
            let (header, tables) = (read_header(&file)?, layout.read_tables(&file)?);
            Ok((file, header, tables))
        });
        let (file, header, tables) = read.map_err(|error| unreadable(&self.path, error))?;
        if digest(&header, &tables) != self.entry.sha256 {
            return Err(refused(
                &self.path,
                "it is damaged, or of another cache: its digest differs".to_string(),
            ));
        }
        let (numbers, _) = tables.as_chunks::<4>();
        let mut numbers = numbers.iter().map(|bytes| u32::from_le_bytes(*bytes));
        let labels = numbers.by_ref().take(layout.count).collect();
        let open = Arc::new(Open {
            file,
            header,
            labels,
            checksums: Some(numbers.collect()),
        });
        *slot = Some(open.clone());
        Ok(open)
    }

    /// Opens the file anew, if it is still the same.
    fn open_again(&self, before: &Open) -> io::Result<Arc<Open>> {
        let file = File::open(&self.path)?;
        if read_header(&file)? != before.header {
            return Err(io::Error::other("another file has taken its place"));
        }
        let open = Arc::new(Open {
            file,
            header: before.header.clone(),
            labels: before.labels.clone(),
            checksums: before.checksums.clone(),
        });
        *self.open.write().unwrap_or_else(PoisonError::into_inner) = Some(open.clone());
        Ok(open)
    }
}

/// Where what lies in a part: header, latents, labels, checksums.
struct Layout {
    count: usize,
    copies: usize,
    bytes_of_one: usize,
}

impl Layout {
    /// Bytes of all latents.
    fn latents(&self) -> usize {
        self.copies * self.count * self.bytes_of_one
    }

    /// Bytes of labels and checksums.
    fn tables(&self) -> usize {
        (1 + self.copies) * self.count * 4
    }

    /// Bytes of the file.
    fn length(&self) -> u64 {
        (HEADER + self.latents() + self.tables()) as u64
    }

    fn read_tables(&self, file: &File) -> io::Result<Vec<u8>> {
        let mut tables = vec![0; self.tables()];
        file.read_exact_at(&mut tables, (HEADER + self.latents()) as u64)?;
        Ok(tables)
    }

    /// The first [`HEADER`] bytes: safetensors' length and JSON, padded with blanks.
    fn header(&self, meta: &CacheMeta, division: Division, number: usize) -> io::Result<Vec<u8>> {
        let ([h, w, d], copies, count) = (meta.shape, self.copies, self.count);
        let (a, b, c) = (
            self.latents(),
            self.latents() + count * 4,
            self.latents() + self.tables(),
        );
        let mut metadata = serde_json::Map::new();
        for (key, value) in [("format", FORMAT.to_string())]
            .into_iter()
            .chain(meta.pairs())
            .chain(place(division, number))
        {
            metadata.insert(key.to_string(), value.into());
        }
        let json = serde_json::json!({
            "__metadata__": metadata,
            "latents": {"dtype": "BF16", "shape": [copies, count, h, w, d], "data_offsets": [0, a]},
            "labels": {"dtype": "U32", "shape": [count], "data_offsets": [a, b]},
            "checksums": {"dtype": "U32", "shape": [copies, count], "data_offsets": [b, c]},
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
}

/// Which part it is, as in its metadata.
fn place(division: Division, number: usize) -> [(&'static str, String); 3] {
    [
        ("part", number.to_string()),
        ("part_size", division.size.to_string()),
        ("images", division.images.to_string()),
    ]
}

fn read_header(file: &File) -> io::Result<Vec<u8>> {
    let mut header = vec![0; HEADER];
    file.read_exact_at(&mut header, 0)?;
    Ok(header)
}

fn digest(header: &[u8], tables: &[u8]) -> String {
    hex(&Sha256::new()
        .chain_update(header)
        .chain_update(tables)
        .finalize())
}

/// What the file at `path` says of itself.
fn metadata(path: &Path) -> Result<(File, Vec<u8>, Metadata)> {
    let mut header = Vec::new();
    let read = patiently(&path.display(), || {
        header.clear();
        let file = File::open(path)?;
        (&file).take(HEADER as u64).read_to_end(&mut header)?;
        Ok(file)
    });
    let file = read.map_err(|error| unreadable(path, error))?;
    let is_ours = header.first_chunk() == Some(&((HEADER - 8) as u64).to_le_bytes());
    let found = header.get(8..HEADER).filter(|_| is_ours);
    match found.and_then(|json| serde_json::from_slice::<Metadata>(json).ok()) {
        Some(found) => Ok((file, header, found)),
        None => Err(refused(path, "no whole part of a latent cache".to_string())),
    }
}

/// The number of images that parts have of which the file at `path` is one.
pub(super) fn size_of_division(path: &Path) -> Result<usize> {
    let (_, _, found) = metadata(path)?;
    let found = found.metadata().clone().unwrap_or_default();
    check_format(path, found.get("format").map(String::as_str), FORMAT)?;
    let size = found.get("part_size").and_then(|size| size.parse().ok());
    size.filter(|size| *size > 0)
        .ok_or_else(|| refused(path, "no whole part of a latent cache".to_string()))
}

/// What `cache.json` says of the part at `path`: all of it is checked but the latents.
///
/// Errors: a stale part, with what differs; another part; a truncated or damaged one.
pub(super) fn entry(
    path: &Path,
    meta: &CacheMeta,
    division: Division,
    number: usize,
) -> Result<Entry> {
    let (file, header, found) = metadata(path)?;
    let strings = found.metadata().clone().unwrap_or_default();
    check_format(path, strings.get("format").map(String::as_str), FORMAT)?;
    compare(path, &strings, meta, super::manifest::STALE)?;
    for (key, expected) in place(division, number) {
        let found = strings.get(key).map_or("none", String::as_str);
        if found != expected {
            let what = format!("another part: its {key} is {found}, expected {expected}");
            return Err(refused(path, what));
        }
    }
    let labels = found.info("labels").and_then(|labels| labels.shape.first());
    let layout = Layout {
        count: labels.copied().unwrap_or(0),
        copies: meta.copies(),
        bytes_of_one: meta.bytes_of_one(),
    };
    // Also types, shapes and offsets are what this program writes.
    if layout.count > division.range(number).len()
        || layout.header(meta, division, number)? != header
    {
        return Err(refused(path, "its header is damaged".to_string()));
    }
    let entry = Entry {
        images: layout.count,
        bytes: layout.length(),
        sha256: String::new(),
    };
    entry.check_size(path)?;
    let tables = patiently(&path.display(), || layout.read_tables(&file));
    let tables = tables.map_err(|error| unreadable(path, error))?;
    Ok(Entry {
        sha256: digest(&header, &tables),
        ..entry
    })
}

/// Writes a part; see [`Maker::write`](super::Maker::write).
pub(super) fn write(
    path: &Path,
    meta: &CacheMeta,
    division: Division,
    number: usize,
    blocks: impl IntoIterator<Item = Result<(Tensor, Vec<u32>)>>,
) -> Result<()> {
    atomic::write_with(path, |file| {
        file.write_all(&[b' '; HEADER])?;
        let (mut labels, mut checksums) = (Vec::new(), Vec::new());
        for block in blocks {
            let (latents, block_labels) = block?;
            let bytes = to_bytes(&latents, &block_labels, meta)?;
            let each = bytes.chunks_exact(meta.bytes_of_one());
            checksums.extend(each.map(crc32fast::hash));
            file.write_all(&bytes)?;
            labels.extend(block_labels);
        }
        let count = labels.len() / meta.copies();
        if meta.flip && labels[..count] != labels[count..] {
            return Err(hinted(
                "the mirrored images are not those of the first half",
                "",
            ));
        }
        let tables = labels[..count].iter().chain(&checksums);
        let tables: Vec<u8> = tables.flat_map(|number| number.to_le_bytes()).collect();
        file.write_all(&tables)?;
        let layout = Layout {
            count,
            copies: meta.copies(),
            bytes_of_one: meta.bytes_of_one(),
        };
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&layout.header(meta, division, number)?)?;
        Ok(())
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::latent_cache::tests::{cache, meta};

    #[test]
    fn a_part_is_opened_again_only_as_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("latents");
        let cache = cache(&path);
        let part = &cache.parts[1];
        let open = part.open().unwrap();
        part.open_again(&open).unwrap();
        let mut bytes = vec![0; cache.bytes_of_one()];
        assert_eq!(part.read(0, false, &mut bytes).unwrap(), 9);
        let division = Division { images: 5, size: 2 };
        let other = CacheMeta {
            data: "ef".repeat(32),
            ..meta()
        };
        write(&part.path, &other, division, 1, Vec::new()).unwrap();
        let error = part.open_again(&open).unwrap_err();
        assert!(error.to_string().contains("another file"), "{error}");
    }
}
