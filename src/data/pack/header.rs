//! What a shard of a pack says of itself, in its first member, and what it can be used for.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::part::{Kind, Part};
use super::super::transient::patiently;
use super::Encoding;
use crate::config::Crop;
use crate::error::{Context, Result, usage};

/// The first member: a hidden file, which is no data.
pub(super) const MEMBER: &str = ".rdpm-pack.json";

/// Raised when what a pack holds changes.
pub(super) const VERSION: u32 = 1;

/// More is no header.
const MAX_BYTES: u64 = 64 << 10;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::data) struct Header {
    pub version: u32,
    /// What the shorter side of every image was resized to.
    pub image_size: usize,
    /// [`Crop::Random`]: whole images. [`Crop::Center`]: the square in the middle.
    pub crop: Crop,
    pub encoding: Encoding,
    /// The fingerprint of what was packed.
    pub data: String,
    /// Images of that, in all shards.
    pub images: usize,
    /// Images for each shard.
    pub shard_images: usize,
    /// This shard's number.
    pub shard: usize,
}

/// The first member of the shard `tar`, if that is a pack's; none of anything else.
pub(super) fn read(tar: impl Read) -> Option<Header> {
    let mut tar = tar::Archive::new(tar);
    let mut first = tar.entries().ok()?.next()?.ok()?;
    if &*first.path_bytes() != MEMBER.as_bytes() || first.size() > MAX_BYTES {
        return None;
    }
    let mut text = String::new();
    first.read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

pub(super) fn of_file(path: &Path) -> Result<Option<Header>> {
    let file = patiently(&path.display(), || File::open(path))
        .with_context(|| format!("could not read the shard {}", path.display()))?;
    Ok(read(file))
}

/// The packs among `parts`.
pub(in crate::data) fn of_parts(parts: &[Part]) -> Result<Vec<(PathBuf, Header)>> {
    let mut packs = Vec::new();
    for part in parts.iter().filter(|part| part.kind == Kind::Shard) {
        let header = match &part.memory {
            Some(tar) => read(tar.as_slice()),
            None => of_file(&part.path)?,
        };
        packs.extend(header.map(|header| (part.path.clone(), header)));
    }
    Ok(packs)
}

impl Header {
    /// Refuses a use at another size, or with crops that a pack at `path` no longer holds.
    pub fn serve(&self, path: &Path, size: usize, crop: Crop) -> Result<()> {
        let path = path.display();
        if self.image_size != size {
            return Err(usage(
                format!(
                    "{path} is packed for images of {0}×{0}; {size}×{size} is asked for",
                    self.image_size
                ),
                format!(
                    "pack the original images again with rdpm pack --size {size}, or name those"
                ),
            ));
        }
        match (self.crop, crop) {
            (_, Crop::Center) | (Crop::Random, Crop::Random) => Ok(()),
            (_, Crop::Random) => Err(usage(
                format!(
                    "{path} holds center crops only; data.crop = \"random\" needs whole images"
                ),
                "pack again with rdpm pack --crop random, or set data.crop=center",
            )),
            (_, Crop::RandomResized) => Err(usage(
                format!(
                    "{path} is a pack; data.crop = \"random-resized\" cuts before it resizes, out of the \
                     original images"
                ),
                "name the original images, or set data.crop to random or center",
            )),
        }
    }
}
