//! `cache.json`: what the parts of a cache of latents are made from, and a digest of each.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::transient::patiently;
use super::part::Entry;
use super::{CacheMeta, Division, compare, unreadable};
use crate::error::{Result, hinted};
use crate::store::bundle::check_format;
use crate::store::{atomic, digest};

pub(super) const FORMAT: &str = "rdpm-latents/2";

pub(super) const NAME: &str = "cache.json";

/// What to do with a cache that is made from something else.
pub(super) const STALE: &str = "remove the folder, or name another with --cache: it is made again";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    format: String,
    tokenizer: String,
    data: String,
    image_size: usize,
    flip: bool,
    /// [h,w,d]
    shape: [usize; 3],
    /// Of the source.
    pub images: usize,
    /// Images of a part.
    pub part_size: usize,
    pub parts: Vec<Entry>,
    /// Of everything else here.
    sha256: String,
}

impl Manifest {
    pub fn new(meta: &CacheMeta, division: Division, parts: Vec<Entry>) -> Self {
        Self {
            format: FORMAT.to_string(),
            tokenizer: meta.tokenizer.clone(),
            data: meta.data.clone(),
            image_size: meta.image_size,
            flip: meta.flip,
            shape: meta.shape,
            images: division.images,
            part_size: division.size,
            parts,
            sha256: String::new(),
        }
    }

    /// The digest of everything but itself.
    fn digest(&self) -> Result<String> {
        let bare = Self {
            sha256: String::new(),
            ..self.clone()
        };
        Ok(digest::of_bytes(&serde_json::to_vec(&bare)?))
    }

    pub fn write(mut self, folder: &Path) -> Result<()> {
        self.sha256 = self.digest()?;
        let text = serde_json::to_string_pretty(&self)? + "\n";
        atomic::write_file(&folder.join(NAME), text.as_bytes())
    }

    /// None: there is none in `folder`.
    ///
    /// Errors: it is of another format, or damaged.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(NAME);
        let text = match patiently(&path.display(), || fs::read(&path)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(|error| unreadable(&path, error))?,
        };
        let damaged = || {
            hinted(
                format!("{}: it is damaged", path.display()),
                "remove this file and start again: it is made again from the parts, which stay",
            )
        };
        let value: Value = serde_json::from_slice(&text).map_err(|_| damaged())?;
        check_format(&path, value["format"].as_str(), FORMAT)?;
        let found: Self = serde_json::from_value(value).map_err(|_| damaged())?;
        match found.sha256 == found.digest()? && found.part_size > 0 {
            true => Ok(Some(found)),
            false => Err(damaged()),
        }
    }

    /// What it is made from.
    pub fn meta(&self) -> CacheMeta {
        CacheMeta {
            tokenizer: self.tokenizer.clone(),
            data: self.data.clone(),
            image_size: self.image_size,
            flip: self.flip,
            shape: self.shape,
        }
    }

    /// Refuses a cache made from something else, by what differs first.
    pub fn check(&self, folder: &Path, expected: &CacheMeta) -> Result<()> {
        let own = self.meta();
        let pairs = own.pairs().map(|(key, value)| (key.to_string(), value));
        compare(folder, &pairs.into(), expected, STALE)?;
        if own.shape != expected.shape {
            return Err(hinted(
                format!(
                    "{}: stale: its latents are {:?}, expected {:?}",
                    folder.display(),
                    own.shape,
                    expected.shape
                ),
                STALE,
            ));
        }
        Ok(())
    }
}
