//! PyTorch's `.pth`: a pickle that describes tensors, and their storages as raw bytes.
//!
//! Since PyTorch 1.6 it is a zip archive (`*/data.pkl`, `*/data/<key>`). Before, and with
//! `_use_new_zipfile_serialization = False`, it is five pickles in a row (magic number, protocol,
//! system, object, storage keys), then for every key its number of elements (i64) and its bytes. A
//! TorchScript archive is such a zip too; its code is ignored.

mod bytes;
mod globals;
mod machine;
mod objects;
mod view;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, Read};
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;
use zip::ZipArchive;
use zip::result::ZipError;

use super::foreign;
use super::tensors::{Named, WANTED};
use crate::error::{Error, Result, hinted};
use objects::{Pickle, Refusal, TensorRef};
use view::Budget;

/// A pickle of tensors' names and shapes is small; with NumPy arrays in it, it may be as large as
/// its file.
const SMALL_PICKLE: u64 = 64 << 20;
const MOST_PICKLE: u64 = 1 << 30;

/// torch.serialization.MAGIC_NUMBER, little endian.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

fn damaged(path: &Path, what: impl std::fmt::Display) -> Error {
    hinted(
        format!("{}: {what}", path.display()),
        "it is damaged, or was not written by torch.save; copy or download it again",
    )
}

fn cannot_read(path: &Path, error: &std::io::Error) -> Error {
    hinted(format!("cannot read {}: {error}", path.display()), "")
}

/// A `.pth` of PyTorch 1.6 and later.
pub(super) fn read_zip(path: &Path) -> Result<Named> {
    let file = File::open(path).map_err(|e| cannot_read(path, &e))?;
    let size = file.metadata().map_err(|e| cannot_read(path, &e))?.len();
    let mut zip = ZipArchive::new(BufReader::new(file)).map_err(|e| damaged(path, e))?;
    let suffix = "data.pkl";
    let root = zip
        .file_names()
        .filter_map(|name| Some(name.ok()?.strip_suffix(suffix)?.to_string()))
        .min_by_key(String::len)
        .ok_or_else(|| {
            foreign::refusal(path, WANTED)
                .unwrap_or_else(|| damaged(path, "a zip archive without data.pkl"))
        })?;
    let mut member = |name: &str, most: u64| -> Result<Option<Vec<u8>>> {
        let entry = match zip.by_name(&format!("{root}{name}")) {
            Err(ZipError::FileNotFound) => return Ok(None),
            entry => entry.map_err(|e| damaged(path, e))?,
        };
        if entry.size() > most {
            return Err(damaged(
                path,
                format!("`{name}` claims {} bytes", entry.size()),
            ));
        }
        let mut bytes = Vec::with_capacity(entry.size() as usize);
        let read = entry.take(most).read_to_end(&mut bytes);
        read.map_err(|e| damaged(path, format!("`{name}`: {e}")))?;
        Ok(Some(bytes))
    };
    if member("byteorder", 16)?.is_some_and(|order| order == b"big") {
        return Err(damaged(path, "its numbers are big-endian"));
    }
    let text = member(suffix, size.clamp(SMALL_PICKLE, MOST_PICKLE))?.unwrap_or_default();
    let (mut pickle, _) = machine::load(&text).map_err(|e| in_file(path, e))?;
    let tensors = state_dict(path, &mut pickle)?;
    // Storages are uncompressed, so none is larger than the file.
    collect(path, size, tensors, |key| {
        member(&format!("data/{key}"), size)?
            .map(Cow::Owned)
            .ok_or_else(|| damaged(path, format!("it lacks the storage `{key}`")))
    })
}

/// A `.pth` of the older format.
pub(super) fn read_legacy(path: &Path) -> Result<Named> {
    let file = File::open(path).map_err(|e| cannot_read(path, &e))?;
    // SAFETY: the map is read only; if another program truncates the file while it is read, a
    // signal ends this process.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| cannot_read(path, &e))?;
    let mut at = 0;
    let mut next = || -> Result<Pickle> {
        let rest = &map[at..];
        let rest = &rest[..rest.len().min(MOST_PICKLE as usize)];
        let (pickle, used) = machine::load(rest).map_err(|e| in_file(path, e))?;
        at += used;
        Ok(pickle)
    };
    if !next()?.is_long(&MAGIC) {
        return Err(damaged(
            path,
            "it does not begin with torch.save's magic number",
        ));
    }
    let (_protocol, system, mut object, keys) = (next()?, next()?, next()?, next()?);
    if system.flag("little_endian") == Some(false) {
        return Err(damaged(path, "its numbers are big-endian"));
    }
    let tensors = state_dict(path, &mut object)?;
    let storages = legacy_storages(&map, at, &keys, &object)
        .ok_or_else(|| damaged(path, "it ends before its last storage"))?;
    collect(path, map.len() as u64, tensors, |key| {
        let range = storages.get(key).cloned();
        let range = range.ok_or_else(|| damaged(path, format!("it lacks the storage `{key}`")))?;
        Ok(Cow::Borrowed(&map[range]))
    })
}

/// The range of each storage's bytes; None if the file ends too early.
fn legacy_storages(
    map: &[u8],
    mut at: usize,
    keys: &Pickle,
    object: &Pickle,
) -> Option<HashMap<String, Range<usize>>> {
    let widths = object.storage_widths();
    let mut found = HashMap::new();
    for key in keys.strings() {
        let (count, _) = map.get(at..)?.split_first_chunk::<8>()?;
        let count = usize::try_from(i64::from_le_bytes(*count)).ok()?;
        let width = widths.get(&key)?;
        let begin = at + 8;
        at = begin.checked_add(count.checked_mul(*width)?)?;
        if at > map.len() {
            return None;
        }
        found.insert(key, begin..at);
    }
    Some(found)
}

/// Builds the tensors storage by storage, so that each storage is read once and only one is in
/// memory.
fn collect<'a>(
    path: &Path,
    size: u64,
    tensors: Vec<(String, TensorRef)>,
    mut storage: impl FnMut(&str) -> Result<Cow<'a, [u8]>>,
) -> Result<Named> {
    let mut by_storage: BTreeMap<String, Vec<(String, TensorRef)>> = BTreeMap::new();
    for (name, tensor) in tensors {
        let key = tensor.key.clone();
        by_storage.entry(key).or_default().push((name, tensor));
    }
    let (mut budget, mut made) = (Budget::of_file(size), BTreeMap::new());
    for (key, tensors) in by_storage {
        let bytes = storage(&key)?;
        for (name, tensor) in tensors {
            let read = view::dtype(&tensor)
                .and_then(|dtype| Ok((view::tensor(&tensor, &bytes, &mut budget)?, dtype)))
                .map_err(|what| damaged(path, format!("`{name}` {what}")))?;
            made.insert(name, read);
        }
    }
    Ok(made)
}

/// The tensors of the state dict; warns of what else there is to know.
fn state_dict(path: &Path, pickle: &mut Pickle) -> Result<Vec<(String, TensorRef)>> {
    let found = pickle.state_dict().map_err(|e| in_file(path, e))?;
    for note in found.notes {
        tracing::warn!("{}: {note}", path.display());
    }
    Ok(found.tensors)
}

fn in_file(path: &Path, refusal: Refusal) -> Error {
    hinted(
        format!("{}: {}", path.display(), refusal.what),
        refusal.hint,
    )
}
