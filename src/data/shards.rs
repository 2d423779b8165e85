//! Tar shards: `.tar` is indexed by its headers and read at random; a gzipped one is decompressed into memory.
//!
//! The class of an image `key.jpg` is the content of `key.cls`, else `label` or `cls` of `key.json` (WebDataset), else
//! the last folder of its key; a number in `.cls` or `.json` is the index itself. WebDataset ends a key at the first dot, so
//! `key.seg.jpg` belongs to `key.cls` too. Members of any other kind are passed over.
//!
//! A shard that ends early (within a member, or without tar's closing block) is an error that says how far it is
//! whole; where bad data may be skipped, what is whole is kept.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::read::MultiGzDecoder;

use super::image_kind::{ENDINGS, is_image_name};
use super::part::{ClassName, Found, Part, Place};
use anyhow::anyhow;

use crate::error::{Context, Result, hinted};

/// What all gzipped shards of a source may take in memory.
pub(super) const GZIP_LIMIT: u64 = 2 << 30;

/// A label's text is a number or a name, not a file.
const MAX_LABEL: u64 = 1 << 20;

/// Beyond it a class's number is a mistake: there is a table of them all.
const MAX_CLASSES: u32 = 1_000_000;

const BLOCK: u64 = 512;

/// Whether a file of this name is taken for a shard; whether it is gzipped, its content says.
pub(super) fn is_shard_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    [".tar", ".tar.gz", ".tgz"]
        .iter()
        .any(|ending| name.ends_with(ending))
}

/// Finds the images of the shard at `path`. `unpacked` counts the bytes that gzipped shards take, up to `limit`.
pub(super) fn scan(path: &Path, skip_bad: bool, unpacked: &AtomicU64, limit: u64) -> Result<Part> {
    let context = || format!("could not read the shard {}", path.display());
    let mut file = File::open(path).with_context(context)?;
    let mut part = Part::new(path.to_path_buf());
    let mut start = [0u8; 2];
    let is_gzip = file.read_exact(&mut start).is_ok() && start == [0x1F, 0x8B];
    file.rewind().with_context(context)?;
    let mut problems = Vec::new();
    if is_gzip {
        let (tar, damage) = unpack(file, path, unpacked, limit)?;
        problems.extend(damage);
        index(&mut Cursor::new(&tar), &mut part, &mut problems);
        part.memory = Some(tar);
    } else {
        index(&mut file, &mut part, &mut problems);
    }
    let whole = part.found.len();
    for problem in &problems {
        let message = format!("{}: {problem}; {whole} images are whole", path.display());
        if !skip_bad {
            return Err(hinted(
                message,
                "make the shard again, or go on with what is whole by --skip-bad-images",
            ));
        }
        tracing::warn!("{message}");
    }
    part.bad = problems.len();
    if whole + part.bad == 0 {
        return Err(hinted(
            format!("{}: no images in this shard", path.display()),
            format!("images end in {ENDINGS}"),
        ));
    }
    Ok(part)
}

/// The decompressed shard, and what is wrong with it if it ends early.
fn unpack(
    file: File,
    path: &Path,
    unpacked: &AtomicU64,
    limit: u64,
) -> Result<(Vec<u8>, Option<String>)> {
    let mut stream = MultiGzDecoder::new(std::io::BufReader::new(file));
    let mut tar = Vec::new();
    loop {
        let before = tar.len();
        let read = stream.by_ref().take(1 << 20).read_to_end(&mut tar);
        let grown = (tar.len() - before) as u64;
        if unpacked.fetch_add(grown, Ordering::Relaxed) + grown > limit {
            return Err(hinted(
                format!(
                    "{}: the gzipped shards take more than {} MiB decompressed",
                    path.display(),
                    limit >> 20
                ),
                "gzip cannot be read at random: unpack the shards with `gunzip -k` and name the .tar files",
            ));
        }
        match read {
            Ok(0) => return Ok((tar, None)),
            Ok(_) => {}
            Err(error) => {
                let damage = format!("gzip damaged after {} unpacked bytes ({error})", tar.len());
                return Ok((tar, Some(damage)));
            }
        }
    }
}

type Labels = HashMap<String, std::result::Result<ClassName, String>>;

/// Adds the whole images of `tar` to `part`, and what is wrong to `problems`.
fn index<R: Read + Seek>(tar: &mut R, part: &mut Part, problems: &mut Vec<String>) {
    let mut labels = Labels::new();
    let mut end = 0;
    // A gzip stream that ended early explains why its tar does.
    if let Err(error) = read_headers(tar, &mut end, &mut part.found, &mut labels)
        && problems.is_empty()
    {
        problems.push(format!("tar damaged after {end} bytes ({error:#})"));
    }
    part.found.retain_mut(|found| {
        let stem = stem(&found.name);
        let label = labels
            .get(stem)
            .or_else(|| labels.get(up_to_first_dot(stem)));
        match label {
            Some(Ok(class)) => found.class = Some(class.clone()),
            Some(Err(problem)) => problems.push(problem.clone()),
            None => found.class = last_folder(stem).map(|name| ClassName::Name(name.to_string())),
        }
        !matches!(label, Some(Err(_)))
    });
}

/// Finds images and labels until `tar` ends; `end` is how far it is whole.
fn read_headers<R: Read + Seek>(
    tar: &mut R,
    end: &mut u64,
    found: &mut Vec<Found>,
    labels: &mut Labels,
) -> Result<()> {
    let length = tar.seek(SeekFrom::End(0))?;
    tar.rewind()?;
    for entry in tar::Archive::new(tar).entries_with_seek()? {
        let mut entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let name = name.trim_start_matches("./").to_string();
        let (offset, size) = (entry.raw_file_position(), entry.size());
        let until = offset.saturating_add(size);
        if until > length {
            return Err(anyhow!(
                "`{name}` ends at byte {until}, the shard at {length}"
            ));
        }
        *end = until.next_multiple_of(BLOCK);
        let is_hidden = name
            .rsplit('/')
            .next()
            .is_some_and(|file| file.starts_with('.'));
        if is_hidden || !entry.header().entry_type().is_file() {
            continue;
        }
        if is_image_name(&name) {
            let place = Place::Member { offset, size };
            found.push(Found {
                name,
                class: None,
                place,
            });
        } else if let Some((stem, kind @ ("cls" | "json"))) = name.rsplit_once('.') {
            let mut text = Vec::new();
            entry.by_ref().take(MAX_LABEL).read_to_end(&mut text)?;
            let label = label(&text, kind).map_err(|problem| format!("`{name}`: {problem}"));
            match label.transpose() {
                Some(label) if kind == "cls" => drop(labels.insert(stem.to_string(), label)),
                Some(label) => drop(labels.entry(stem.to_string()).or_insert(label)),
                None => {}
            }
        }
    }
    if length < *end + BLOCK {
        return Err(anyhow!("the closing block is missing"));
    }
    Ok(())
}

/// The class that a `.cls` or `.json` names; none if the latter is silent about it.
fn label(text: &[u8], kind: &str) -> std::result::Result<Option<ClassName>, String> {
    use serde_json::Value;
    if kind == "cls" {
        return class_name(&String::from_utf8_lossy(text)).map(Some);
    }
    let json: Value = serde_json::from_slice(text).map_err(|e| format!("not JSON ({e})"))?;
    match json.get("label").or_else(|| json.get("cls")) {
        Some(Value::String(name)) => class_name(name).map(Some),
        Some(Value::Number(number)) => class_name(&number.to_string()).map(Some),
        None | Some(Value::Null) => Ok(None),
        Some(other) => Err(format!("a class is a number or a string, found {other}")),
    }
}

fn class_name(text: &str) -> std::result::Result<ClassName, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err("the class is empty".to_string());
    }
    match text.parse::<f64>() {
        Err(_) => Ok(ClassName::Name(text.to_string())),
        Ok(_) => match text.parse::<u32>() {
            Ok(number) if number < MAX_CLASSES => Ok(ClassName::Number(number)),
            _ => Err(format!("class {text} is not in 0..{MAX_CLASSES}")),
        },
    }
}

/// The name without its last ending.
pub(super) fn stem(name: &str) -> &str {
    let (folder, file) = name
        .rsplit_once('/')
        .map_or((0, name), |(f, file)| (f.len() + 1, file));
    &name[..folder + file.rfind('.').unwrap_or(file.len())]
}

/// WebDataset's key: up to the first dot of the file's name.
fn up_to_first_dot(name: &str) -> &str {
    let file = name.rfind('/').map_or(0, |slash| slash + 1);
    &name[..name[file..].find('.').map_or(name.len(), |dot| file + dot)]
}

fn last_folder(stem: &str) -> Option<&str> {
    let (folders, _) = stem.rsplit_once('/')?;
    folders.rsplit('/').next().filter(|name| !name.is_empty())
}
