//! Sources: labelled images by index, found when they are opened, read and decoded one by one.
//!
//! What a path is decides how it is opened: a folder of images, a tar shard, a single image; a pattern with `*`, `?` or
//! `[` stands for every path it matches. All paths become one source, sorted, each path once, so the order of
//! images does not depend on the order in which they were named.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use image::RgbImage;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::decode::{decode, is_image_name};
use super::numbering::{numbering, unknown_class};
use super::part::{ClassName, Found, Part, Place};
use super::shards::{self, is_shard_name, stem};
use super::{Classes, folder};
use crate::error::{Context, Result, usage};
use crate::store::digest::hex;

/// One decoded image.
#[derive(Debug, Clone)]
pub struct Example {
    pub image: RgbImage,
    /// 0 where the source has no classes.
    pub label: u32,
    /// Its name in the source, without ending.
    pub key: String,
}

/// Images by index; the order is fixed.
pub trait Source: Send + Sync {
    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Empty: the images have no labels.
    fn classes(&self) -> &Classes;

    /// Reads and decodes one image; an error names its path.
    fn read(&self, index: usize) -> Result<Example>;

    /// A digest of what the source holds (names, sizes, labels): equal for equal data wherever it lies.
    fn fingerprint(&self) -> Result<String>;
}

/// Opens folders, shards and globs of them as one source, classes numbered by their sorted names.
///
/// With `skip_bad`, what cannot be read of a damaged shard is reported and left out instead of an error.
pub fn open(patterns: &[String], skip_bad: bool) -> Result<Arc<dyn Source>> {
    Ok(Arc::new(Images::open(patterns, None, skip_bad)?))
}

/// As [`open`], with the numbering of `classes`: a validation set takes its training set's. An unknown class is an error.
pub fn open_numbered(
    patterns: &[String],
    classes: &Classes,
    skip_bad: bool,
) -> Result<Arc<dyn Source>> {
    Ok(Arc::new(Images::open(patterns, Some(classes), skip_bad)?))
}

/// Files and members of shards as one source.
struct Images {
    parts: Vec<Part>,
    items: Vec<Item>,
    classes: Classes,
}

struct Item {
    part: u32,
    label: u32,
    place: Place,
    name: Box<str>,
}

impl Images {
    fn open(patterns: &[String], given: Option<&Classes>, skip_bad: bool) -> Result<Self> {
        let unpacked = AtomicU64::new(0);
        let scanned: Vec<Result<Part>> = expand(patterns)?
            .into_par_iter()
            .map(|path| scan(path, skip_bad, &unpacked))
            .collect();
        let mut parts = scanned.into_iter().collect::<Result<Vec<Part>>>()?;
        for part in &parts {
            tracing::debug!("{}: {} images", part.path.display(), part.found.len());
        }
        let classes = numbering(&parts, given)?;
        let indices: HashMap<&str, u32> = classes
            .iter()
            .map(|class| class.wnid.as_str())
            .zip(0..)
            .collect();
        let mut items = Vec::new();
        for (part, number) in parts.iter_mut().zip(0..) {
            for Found { name, class, place } in std::mem::take(&mut part.found) {
                let label = match &class {
                    None => 0,
                    Some(ClassName::Number(number)) => *number,
                    Some(ClassName::Name(class)) => {
                        *indices.get(class.as_str()).ok_or_else(|| {
                            let path = part.path_of(&name, place);
                            unknown_class(&path, class, &classes)
                        })?
                    }
                };
                items.push(Item {
                    part: number,
                    label,
                    place,
                    name: name.into(),
                });
            }
        }
        let bad: usize = parts.iter().map(|part| part.bad).sum();
        tracing::info!(
            images = items.len(),
            classes = classes.len(),
            bad,
            "opened {}",
            patterns.join(" ")
        );
        Ok(Self {
            parts,
            items,
            classes,
        })
    }

    fn bytes(&self, item: &Item) -> Result<Vec<u8>> {
        let part = &self.parts[item.part as usize];
        let _span = tracing::debug_span!("read").entered();
        let context = || format!("could not read {}", part.path_of(&item.name, item.place));
        match (item.place, &part.memory) {
            (Place::File, _) => std::fs::read(part.path.join(&*item.name)),
            (Place::Member { offset, size }, Some(tar)) => {
                Ok(tar[offset as usize..(offset + size) as usize].to_vec())
            }
            (Place::Member { offset, size }, None) => {
                let mut bytes = vec![0; size as usize];
                // Opened for every image: thousands of shards would exceed the limit of open files.
                File::open(&part.path)
                    .and_then(|file| file.read_exact_at(&mut bytes, offset))
                    .map(|()| bytes)
            }
        }
        .with_context(context)
    }
}

impl Source for Images {
    fn len(&self) -> usize {
        self.items.len()
    }

    fn classes(&self) -> &Classes {
        &self.classes
    }

    fn read(&self, index: usize) -> Result<Example> {
        let item = &self.items[index];
        let part = &self.parts[item.part as usize];
        let path = part.path_of(&item.name, item.place);
        tracing::trace!("reading {path}");
        let image = decode(&self.bytes(item)?, &path)?;
        Ok(Example {
            image,
            label: item.label,
            key: stem(&item.name).to_string(),
        })
    }

    fn fingerprint(&self) -> Result<String> {
        let mut digest = Sha256::new();
        for item in &self.items {
            let part = &self.parts[item.part as usize];
            let size = match item.place {
                Place::Member { size, .. } => size,
                Place::File => {
                    let path = part.path_of(&item.name, item.place);
                    let metadata = std::fs::metadata(&path);
                    metadata
                        .with_context(|| format!("could not read {path}"))?
                        .len()
                }
            };
            let name = &item.name;
            digest.update(format!("{name}\0{size}\0{}\n", item.label));
        }
        Ok(hex(&digest.finalize()))
    }
}

/// The paths that `patterns` stand for, sorted, each once.
fn expand(patterns: &[String]) -> Result<BTreeSet<PathBuf>> {
    if patterns.is_empty() {
        return Err(usage("no data given", "name folders, tar shards or images"));
    }
    let mut paths = BTreeSet::new();
    for pattern in patterns {
        // A path may hold the characters of a pattern.
        if Path::new(pattern).exists() {
            paths.insert(PathBuf::from(pattern));
            continue;
        }
        if !pattern.contains(['*', '?', '[']) {
            return Err(usage(
                format!("there is no {pattern}"),
                "images are read from folders, tar shards and globs of them",
            ));
        }
        let before = paths.len();
        let matches = glob::glob(pattern).map_err(|e| usage(format!("{pattern}: {e}"), ""))?;
        for path in matches {
            paths.insert(path?);
        }
        if paths.len() == before {
            return Err(usage(
                format!("nothing matches {pattern}"),
                "put a glob in quotes, or let the shell expand it",
            ));
        }
    }
    Ok(paths)
}

/// What a path is decides how it is opened.
fn scan(path: PathBuf, skip_bad: bool, unpacked: &AtomicU64) -> Result<Part> {
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    if path.is_dir() {
        folder::scan(&path)
    } else if is_shard_name(&name) {
        shards::scan(&path, skip_bad, unpacked, shards::GZIP_LIMIT)
    } else if is_image_name(&name) {
        let mut part = Part::new(path.parent().unwrap_or(Path::new("")).to_path_buf());
        part.found.push(Found {
            name,
            class: None,
            place: Place::File,
        });
        Ok(part)
    } else {
        Err(usage(
            format!(
                "{}: neither a folder nor a tar shard nor an image",
                path.display()
            ),
            "images are read from folders, .tar, .tar.gz, .tgz, .jpg, .png and .webp",
        ))
    }
}
