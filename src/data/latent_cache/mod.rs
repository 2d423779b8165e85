//! Latents of a whole data set: what train-gen reads instead of running the encoder.
//!
//! A cache is a folder of parts ([`part`]), each with the latents of some thousand images, and
//! `cache.json` ([`manifest`]), which says what all are made from and has a digest of each. Parts
//! appear whole or not at all, so that a cache is made part by part, by several processes, and goes
//! on where it was stopped: [`Maker`].
//!
//! Opening a cache reads `cache.json` and no latents. A part's header and tables are checked when
//! it is first used, and each latent has a checksum, which is checked when it is read. Version 1
//! was a single file ([`single`]), which is still read.

mod manifest;
mod part;
mod single;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::Tensor;

use crate::error::{Context, Error, Result, hinted, usage};
use manifest::Manifest;
use part::Part;

/// Images of a part: 128 MiB of latents [16,16,32], twice that with mirror images.
pub const PART: usize = 8192;

/// Parts of one cache at most, unless more are asked for: each is an open file.
const MOST_PARTS: usize = 512;

/// A cache as it lies on the disk, without what it must be made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// None: it is not finished, and its parts are all that is known.
    pub made: Option<Made>,
    /// Parts whose files are there.
    pub parts: usize,
    /// Of the files of its parts.
    pub bytes: u64,
}

/// What a finished cache says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    pub meta: CacheMeta,
    /// With latents in it.
    pub images: usize,
    /// Images of a part.
    pub part_size: usize,
    pub parts: usize,
    /// What is wrong with the first part that is missing or cut.
    pub wrong: Option<String>,
}

/// The format of a cache that is a folder.
pub const FORMAT: &str = manifest::FORMAT;

/// Describes the cache in `folder`, reading no latents; none if there is none.
///
/// Errors: a `cache.json` that is damaged or of another format.
pub fn describe(folder: &Path) -> Result<Option<Description>> {
    let manifest = match folder.is_dir() {
        true => Manifest::read(folder)?,
        false => None,
    };
    // What also holds other files is no cache, unless it says so.
    let files = match parts_in(folder) {
        Err(error) if manifest.is_some() => return Err(error),
        files => files.unwrap_or_default(),
    };
    if manifest.is_none() && files.is_empty() {
        return Ok(None);
    }
    let mut bytes = 0;
    for path in files.values() {
        bytes += fs::metadata(path)
            .map_err(|error| unreadable(path, error))?
            .len();
    }
    let made = manifest.map(|manifest| {
        let parts = manifest.parts.iter().enumerate();
        let mut sizes = parts.map(|(number, entry)| entry.check_size(&part_path(folder, number)));
        Made {
            meta: manifest.meta(),
            images: manifest.parts.iter().map(|part| part.images).sum(),
            part_size: manifest.part_size,
            parts: manifest.parts.len(),
            wrong: sizes
                .find_map(Result::err)
                .map(|error| format!("{error:#}")),
        }
    });
    Ok(Some(Description {
        made,
        parts: files.len(),
        bytes,
    }))
}

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

    /// Bytes of one latent.
    fn bytes_of_one(&self) -> usize {
        self.shape.iter().product::<usize>() * 2
    }
}

/// How the images of a source are divided into parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Division {
    /// Of the source.
    images: usize,
    /// Images of a part.
    size: usize,
}

impl Division {
    fn parts(self) -> usize {
        self.images.div_ceil(self.size)
    }

    /// The images of a part, by place in the source.
    fn range(self, part: usize) -> Range<usize> {
        let first = part * self.size;
        first..(first + self.size).min(self.images)
    }
}

/// An open cache.
#[derive(Debug)]
pub struct LatentCache {
    parts: Vec<Part>,
    /// The number of the first image of each part, and behind the last.
    firsts: Vec<usize>,
    bytes_of_one: usize,
}

impl LatentCache {
    /// Opens the cache at `path`, made from `expected`. Reads no latents, but all of a file of
    /// version 1.
    ///
    /// Errors: a stale cache, with what differs; one of another format; one that is not whole.
    pub fn open(path: &Path, expected: &CacheMeta) -> Result<Self> {
        if !path.is_dir() {
            return Ok(Self::of(vec![single::open(path, expected)?], expected));
        }
        let Some(manifest) = Manifest::read(path)? else {
            return Err(hinted(
                format!("{}: a cache that is not whole", path.display()),
                "the command that began it goes on with it",
            ));
        };
        manifest.check(path, expected)?;
        let parts = manifest.parts.iter().enumerate().map(|(number, entry)| {
            let path = part_path(path, number);
            entry.check_size(&path)?;
            Ok(Part::new(path, entry.clone(), expected))
        });
        Ok(Self::of(parts.collect::<Result<_>>()?, expected))
    }

    fn of(parts: Vec<Part>, meta: &CacheMeta) -> Self {
        let mut firsts = vec![0];
        for part in &parts {
            firsts.push(firsts[firsts.len() - 1] + part.images());
        }
        Self {
            parts,
            firsts,
            bytes_of_one: meta.bytes_of_one(),
        }
    }

    /// Number of images N.
    pub fn len(&self) -> usize {
        self.firsts[self.parts.len()]
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of one latent.
    pub fn bytes_of_one(&self) -> usize {
        self.bytes_of_one
    }

    /// Reads the latent [h,w,d] of `image` (or, in a cache with flips, of its mirror image): bf16,
    /// little-endian. Returns the image's label.
    ///
    /// Errors: its part is damaged, or cannot be read.
    pub fn read(&self, image: usize, mirrored: bool, out: &mut [u8]) -> Result<u32> {
        assert_eq!(out.len(), self.bytes_of_one(), "bytes of a latent");
        assert!(image < self.len(), "image {image} of {}", self.len());
        // Behind the last part that begins at or before the image; an empty one has none.
        let part = self.firsts.partition_point(|first| *first <= image) - 1;
        self.parts[part].read(image - self.firsts[part], mirrored, out)
    }

    /// Reads all latents, and so checks them.
    ///
    /// Errors: the first part that is damaged.
    pub fn verify(&self) -> Result<()> {
        self.parts.iter().try_for_each(Part::verify)
    }
}

/// A cache that is being made, by one process or by several that know which parts are missing.
#[derive(Debug, Clone)]
pub struct Maker {
    path: PathBuf,
    meta: CacheMeta,
    division: Division,
}

impl Maker {
    /// Makes the folder `path` one for a cache of so many images, or finds that it is; then which
    /// parts are missing. None: the cache is there, whole. A cache that was begun keeps the number
    /// of images of a part, unless another is asked for.
    ///
    /// Errors: there is something else at `path`, or a cache made from something else, or of parts
    /// of another size; a part that is not whole.
    pub fn begin(
        path: &Path,
        meta: &CacheMeta,
        images: usize,
        part_size: Option<usize>,
    ) -> Result<Option<(Self, Vec<usize>)>> {
        if path.exists() && !path.is_dir() {
            return Ok(None);
        }
        let manifest = match path.is_dir() {
            true => Manifest::read(path)?,
            false => None,
        };
        if let Some(manifest) = &manifest {
            manifest.check(path, meta)?;
        }
        let there = parts_in(path)?;
        let begun = match (&manifest, there.iter().next()) {
            (Some(manifest), _) => Some(manifest.part_size),
            (None, Some((_, path))) => Some(part::size_of_division(path)?),
            (None, None) => None,
        };
        let default = PART.max(images.div_ceil(MOST_PARTS));
        let size = part_size.or(begun).unwrap_or(default).max(1);
        let division = Division { images, size };
        if let Some(begun) = begun.filter(|begun| *begun != size) {
            return Err(usage(
                format!(
                    "{} holds parts of {begun} images, not of {size}",
                    path.display()
                ),
                format!("--cache-part {begun} goes on with them; or remove the folder"),
            ));
        }
        let maker = Self {
            path: path.to_path_buf(),
            meta: meta.clone(),
            division,
        };
        let mut missing: Vec<usize> = (0..division.parts()).collect();
        missing.retain(|number| !there.contains_key(number));
        if let Some(last) = there.keys().find(|number| **number >= division.parts()) {
            return Err(refused(
                &part_path(path, *last),
                "a part of other images".to_string(),
            ));
        }
        match &manifest {
            Some(manifest) if missing.is_empty() && manifest.images == images => Ok(None),
            _ => {
                // What is there is checked before hours of work.
                for (number, path) in &there {
                    part::entry(path, meta, division, *number)?;
                }
                fs::create_dir_all(path)
                    .with_context(|| format!("could not make the folder {}", path.display()))?;
                Ok(Some((maker, missing)))
            }
        }
    }

    /// The same at another process, as told by the one that began.
    pub fn joined(path: &Path, meta: &CacheMeta, images: usize, part_size: usize) -> Self {
        let (path, meta) = (path.to_path_buf(), meta.clone());
        let division = Division {
            images,
            size: part_size,
        };
        Self {
            path,
            meta,
            division,
        }
    }

    /// Images of a part.
    pub fn part_size(&self) -> usize {
        self.division.size
    }

    /// The number of parts.
    pub fn parts(&self) -> usize {
        self.division.parts()
    }

    /// The images of a part, by place in the source.
    pub fn range(&self, part: usize) -> Range<usize> {
        self.division.range(part)
    }

    /// Writes a part. `blocks` yields latents [n,h,w,d] (f32 or bf16) with their labels [n]: first
    /// those of its images in the source's order, then, with flips, of all mirrored images in the
    /// same order.
    ///
    /// The part appears when it is whole. Errors: those of `blocks`, a block of another shape, a
    /// full disk.
    pub fn write(
        &self,
        part: usize,
        blocks: impl IntoIterator<Item = Result<(Tensor, Vec<u32>)>>,
    ) -> Result<()> {
        let path = part_path(&self.path, part);
        part::write(&path, &self.meta, self.division, part, blocks)
    }

    /// Makes the cache whole, once all parts are there.
    ///
    /// Errors: a part is missing or damaged; there is no image in any.
    pub fn finish(&self) -> Result<()> {
        let parts = (0..self.parts()).map(|number| {
            let path = part_path(&self.path, number);
            part::entry(&path, &self.meta, self.division, number)
        });
        let parts = parts.collect::<Result<Vec<_>>>()?;
        if parts.iter().all(|part| part.images == 0) {
            return Err(hinted(
                "no image could be encoded",
                "the warnings above say why; name other images",
            ));
        }
        Manifest::new(&self.meta, self.division, parts).write(&self.path)
    }
}

/// Where a part lies in the folder of its cache.
fn part_path(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("part-{number:05}.safetensors"))
}

/// The parts in `folder`, by number; none if there is no folder.
///
/// Errors: it holds something else too.
fn parts_in(folder: &Path) -> Result<std::collections::BTreeMap<usize, PathBuf>> {
    let mut found = std::collections::BTreeMap::new();
    if !folder.is_dir() {
        return Ok(found);
    }
    let listing = || format!("could not list the folder {}", folder.display());
    for entry in fs::read_dir(folder).with_context(listing)? {
        let path = entry.with_context(listing)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let number = name.strip_prefix("part-");
        let number = number.and_then(|n| n.strip_suffix(".safetensors")?.parse().ok());
        match number.filter(|number| part_path(folder, *number) == path) {
            Some(number) => {
                found.insert(number, path);
            }
            None if name == manifest::NAME || name.starts_with('.') => {}
            None => {
                return Err(usage(
                    format!(
                        "{} is no cache of latents: it holds {name}",
                        folder.display()
                    ),
                    "name a new folder with --cache",
                ));
            }
        }
    }
    Ok(found)
}

/// Refuses a cache made from something else.
fn compare(
    path: &Path,
    metadata: &HashMap<String, String>,
    expected: &CacheMeta,
    remedy: &str,
) -> Result<()> {
    for (key, expected) in expected.pairs() {
        let found = metadata.get(key).map_or("none", String::as_str);
        if found != expected {
            return Err(hinted(
                format!(
                    "{}: stale: its {key} is {found}, expected {expected}",
                    path.display()
                ),
                remedy,
            ));
        }
    }
    Ok(())
}

impl CacheMeta {
    /// As in a file's metadata, but for the shape.
    fn pairs(&self) -> [(&'static str, String); 4] {
        [
            ("tokenizer", self.tokenizer.clone()),
            ("data", self.data.clone()),
            ("image_size", self.image_size.to_string()),
            ("flip", self.flip.to_string()),
        ]
    }
}

/// Refuses a file of a cache, which is then made again.
fn refused(path: &Path, what: String) -> Error {
    hinted(
        format!("{}: {what}", path.display()),
        "remove this file and start again: it alone is made again",
    )
}

/// The error of a file that could not be read.
fn unreadable(path: &Path, error: io::Error) -> Error {
    Error::from(error).context(format!("could not read {}", path.display()))
}

#[cfg(test)]
pub(crate) mod tests;
