//! Sources: labelled images by index, found when they are opened, read and decoded one by one.
//!
//! What a path is decides how it is opened: a folder of images, a tar shard, a single image. All
//! paths become one source, sorted, each once, so the order of images does not depend on the order
//! in which they were named.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use image::RgbImage;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::decode::decode;
use super::labelling::label;
use super::numbering::{numbering, unknown_class};
use super::part::{ClassName, Found, Part, Place};
use super::paths::{Given, expand};
use super::plausible;
use super::selection::stem;
use super::{Classes, folder, shards};
use crate::error::{Context, Result, hinted};
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

    /// What it holds, in a line.
    fn summary(&self) -> String {
        format!("{} images of {} classes", self.len(), self.classes().len())
    }

    /// What of its labels is hard to believe, a sentence each.
    fn doubts(&self) -> &[String] {
        &[]
    }

    /// Says what of its labels is hard to believe; for whoever uses them.
    fn warn_of_doubts(&self) {
        for doubt in self.doubts() {
            tracing::warn!("{doubt}");
        }
    }

    /// A digest of what the source holds (names, sizes, labels): equal for equal data wherever it
    /// lies.
    fn fingerprint(&self) -> Result<String>;
}

/// Opens folders, shards and globs of them as one source, classes numbered by their sorted names.
///
/// With `skip_bad`, what cannot be read of a damaged shard is reported and left out instead of an
/// error.
pub fn open(patterns: &[String], skip_bad: bool) -> Result<Arc<dyn Source>> {
    Ok(Arc::new(Images::open(patterns, None, skip_bad)?))
}

/// As [`open`], with the numbering of `classes`: a validation set takes its training set's. An
/// unknown class is an error.
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
    summary: String,
    doubts: Vec<String>,
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
            .map(|given| scan(given, skip_bad, &unpacked))
            .collect();
        let mut parts = scanned.into_iter().collect::<Result<Vec<Part>>>()?;
        for part in &parts {
            tracing::debug!("{}: {} images", part.path.display(), part.found.len());
        }
        let origin = label(&mut parts, skip_bad)?;
        let classes = numbering(&parts, given)?;
        let used = plausible::used(&parts);
        let doubts = plausible::doubts(&parts, &classes, &origin, &used, given.is_some());
        let items = items(&mut parts, &classes)?;
        let summary = plausible::summary(items.len(), &classes, &origin);
        let bad: usize = parts.iter().map(|part| part.bad).sum();
        tracing::info!(
            images = items.len(),
            classes = classes.len(),
            bad,
            "opened {}: {summary}",
            shortened(patterns)
        );
        for part in parts.iter().filter(|part| part.empty.is_some()) {
            let reason = part.empty.as_deref().unwrap_or_default();
            tracing::warn!("{}: {reason}", part.path.display());
        }
        for line in plausible::passed_over(&parts) {
            tracing::warn!("{line}");
        }
        if let Some(line) = plausible::sharing(&parts) {
            tracing::info!("{line}");
        }
        Ok(Self {
            parts,
            items,
            classes,
            summary,
            doubts,
        })
    }

    fn bytes(&self, item: &Item) -> Result<Vec<u8>> {
        let part = &self.parts[item.part as usize];
        let _span = tracing::debug_span!("read").entered();
        let path = part.path_of(&item.name);
        if let Place::Refused(reason) = &item.place {
            return Err(hinted(
                format!("{path}: {reason}"),
                "make the shard again, or leave bad images out with --skip-bad-images",
            ));
        }
        let bytes = part.bytes(&item.name, &item.place);
        bytes.with_context(|| format!("could not read {path}"))
    }
}

/// The images of all parts with their classes' numbers.
fn items(parts: &mut [Part], classes: &Classes) -> Result<Vec<Item>> {
    let indices: HashMap<&str, u32> = classes
        .iter()
        .map(|class| class.wnid.as_str())
        .zip(0..)
        .collect();
    let mut items = Vec::new();
    for (part, number) in parts.iter_mut().zip(0..) {
        for found in std::mem::take(&mut part.found) {
            let Found {
                name, class, place, ..
            } = found;
            let label = match &class {
                None => 0,
                Some(ClassName::Number(number)) => *number,
                Some(ClassName::Name(class)) => *indices
                    .get(class.as_str())
                    .ok_or_else(|| unknown_class(&part.path_of(&name), class, classes))?,
            };
            items.push(Item {
                part: number,
                label,
                place,
                name: name.into(),
            });
        }
    }
    Ok(items)
}

/// A shell may have turned a pattern into thousands of paths.
fn shortened(patterns: &[String]) -> String {
    match patterns {
        [first, .., last] if patterns.len() > 4 => {
            format!("{first} ... {last} ({} paths)", patterns.len())
        }
        _ => patterns.join(" "),
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
        let path = part.path_of(&item.name);
        tracing::trace!("reading {path}");
        let image = decode(&self.bytes(item)?, &path)?;
        Ok(Example {
            image,
            label: item.label,
            key: stem(&item.name).to_string(),
        })
    }

    fn summary(&self) -> String {
        self.summary.clone()
    }

    fn doubts(&self) -> &[String] {
        &self.doubts
    }

    fn fingerprint(&self) -> Result<String> {
        let mut digest = Sha256::new();
        for item in &self.items {
            let part = &self.parts[item.part as usize];
            let size = part
                .size(&item.name, &item.place)
                .with_context(|| format!("could not read {}", part.path_of(&item.name)))?;
            let name = &item.name;
            digest.update(format!("{name}\0{size}\0{}\n", item.label));
        }
        Ok(hex(&digest.finalize()))
    }
}

/// Finds the images of what is given.
fn scan(given: Given, skip_bad: bool, unpacked: &AtomicU64) -> Result<Part> {
    match given {
        Given::Folder(path) => folder::scan(&path, skip_bad),
        Given::Shard(path) => shards::scan(&path, skip_bad, unpacked, shards::GZIP_LIMIT),
        Given::Images { folder, images } => folder::scan_images(&folder, &images),
    }
}
