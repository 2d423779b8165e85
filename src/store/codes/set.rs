//! A set of codes in shards: a folder with `codes.json`, which says of what and how all are made,
//! and `codes-NNNNN` in one of the formats.
//!
//! A shard holds the images of its range of the source, and appears whole or not at all, so that a
//! set is made piece by piece, by several processes, and goes on where it was stopped.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Codes, Format, Origin, damaged};
use crate::error::{Context, Result, hinted, usage};
use crate::store::atomic;

/// The version this program writes and reads.
const FORMAT: &str = "rdpm-codes-set/1";

/// The file that makes a folder one of shards.
const MANIFEST: &str = "codes.json";

/// What a set is made of, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: String,
    /// The format of its shards.
    pub files: Format,
    #[serde(flatten)]
    pub origin: Origin,
    pub image_size: usize,
    /// Whether every image's mirror image follows it.
    pub flip: bool,
    pub latents: bool,
    pub noise: bool,
    /// The classes that labels number, if the images have any.
    pub classes: Vec<String>,
    /// The fingerprint of the source.
    pub data: String,
    /// Images of the source.
    pub images: usize,
    /// Images of the source in a shard.
    pub shard_size: usize,
}

impl Manifest {
    /// The version of what this program writes.
    pub fn format() -> String {
        FORMAT.to_string()
    }

    pub fn shards(&self) -> usize {
        self.images.div_ceil(self.shard_size)
    }

    /// The images of a shard, by place in the source.
    pub fn range(&self, shard: usize) -> Range<usize> {
        let first = shard * self.shard_size;
        first..(first + self.shard_size).min(self.images)
    }

    /// Where a shard lies in the folder `out`.
    pub fn path(&self, out: &Path, shard: usize) -> PathBuf {
        out.join(self.files.name(&format!("codes-{shard:05}")))
    }

    /// Makes the folder `out` one for this set, or finds that it is.
    ///
    /// Errors: it holds another set, or something else.
    pub fn claim(&self, out: &Path) -> Result<()> {
        if let Some(found) = Manifest::read(out)? {
            return self.same(out, &found);
        }
        let listing = || format!("could not list the folder {}", out.display());
        if out.exists() {
            for entry in fs::read_dir(out).with_context(listing)? {
                let name = entry.with_context(listing)?.file_name();
                if !name.to_string_lossy().starts_with('.') {
                    return Err(usage(
                        format!("{} exists and holds no set of codes", out.display()),
                        "name a new folder with --out",
                    ));
                }
            }
        }
        fs::create_dir_all(out)
            .with_context(|| format!("could not make the folder {}", out.display()))?;
        let text = serde_json::to_string_pretty(self)? + "\n";
        let written = atomic::write_file(&out.join(MANIFEST), text.as_bytes());
        match (written, Manifest::read(out)?) {
            // Another part of the same job was quicker.
            (_, Some(found)) => self.same(out, &found),
            (written, None) => written,
        }
    }

    fn read(folder: &Path) -> Result<Option<Manifest>> {
        let path = folder.join(MANIFEST);
        let text = match fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => return Ok(None),
            text => text.with_context(|| format!("could not read {}", path.display()))?,
        };
        let refused = |what: String| {
            hinted(
                format!("{}: {what}", path.display()),
                "`rdpm encode --shard-size N` writes it, and shards beside it",
            )
        };
        let value: Value = serde_json::from_str(&text)
            .map_err(|e| refused(format!("it is no set of codes ({e})")))?;
        let format = value["format"].as_str().unwrap_or("none");
        if format != FORMAT {
            return Err(refused(format!("expected format {FORMAT}, found {format}")));
        }
        let manifest = serde_json::from_value(value);
        let manifest: Manifest = manifest.map_err(|e| refused(format!("it is damaged ({e})")))?;
        match manifest.shard_size {
            0 => Err(refused("it is damaged (shards of 0 images)".into())),
            _ => Ok(Some(manifest)),
        }
    }

    /// Refuses another set than this one, by what differs first.
    fn same(&self, out: &Path, found: &Manifest) -> Result<()> {
        let (expected, found) = (serde_json::to_value(self)?, serde_json::to_value(found)?);
        let keys = expected.as_object().into_iter().flatten();
        for (key, expected) in keys {
            if found[key] != *expected {
                let difference = match key.as_str() {
                    "data" => "it was made of other images".to_string(),
                    "classes" => "it has other classes".to_string(),
                    _ => format!("its {key} is {}, expected {expected}", found[key]),
                };
                return Err(usage(
                    format!("{} holds another set of codes: {difference}", out.display()),
                    "name a new folder with --out, or remove that set",
                ));
            }
        }
        Ok(())
    }
}

/// The files of codes that `path` names: itself, or all shards of a set.
///
/// Errors: a folder of neither kind; shards that are missing.
pub fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let Some(manifest) = Manifest::read(path)? else {
        if path.is_dir() && !Format::is_codes(path) {
            return Err(usage(
                format!("{}: a folder without codes", path.display()),
                "name a file of codes, or the folder that `rdpm encode --shard-size N` wrote",
            ));
        }
        return Ok(vec![path.to_path_buf()]);
    };
    let mut paths = Vec::new();
    for shard in 0..manifest.shards() {
        let file = manifest.path(path, shard);
        if !file.exists() {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            let names = entries.map(|entry| entry.file_name());
            let there = names.filter(|name| name.to_string_lossy().starts_with("codes-"));
            let there = there.count();
            return Err(hinted(
                format!(
                    "{}: {there} of {} shards are there, the first that is missing is {}",
                    path.display(),
                    manifest.shards(),
                    file.display()
                ),
                "the `rdpm encode` command that began the set makes them; or name the shards to read",
            ));
        }
        paths.push(file);
    }
    Ok(paths)
}

/// What codes in `path` say of themselves.
pub fn manifest(path: &Path) -> Result<Option<Value>> {
    let manifest = Manifest::read(path)?;
    Ok(manifest.map(serde_json::to_value).transpose()?)
}

/// Checks the shard at `path`, which is there already, against what the set is made of.
///
/// Errors: it is damaged; it is of another set.
pub fn check_shard(path: &Path, manifest: &Manifest) -> Result<usize> {
    let codes = Codes::read(path)?;
    if codes.origin != manifest.origin {
        return Err(damaged(path, "another tokenizer or seed made it".into()));
    }
    let extras = (codes.latents.is_some(), codes.noise.is_some());
    if extras != (manifest.latents, manifest.noise) {
        return Err(damaged(
            path,
            "its latents or noise are not the set's".into(),
        ));
    }
    Ok(codes.len())
}
