//! The index of a data set: what was found in it, kept in a file, so that a later start looks at
//! its folders and shards (a thousand) and not at every file (a million).
//!
//! It holds what [`super::selection`] and [`super::labelling`] decided, and decides nothing. It is
//! taken only where every folder, every shard and every file that gave a label has the size and the
//! times that it had then; else the set is looked through again. What no folder's time tells, a
//! file that was written to in its place, is found by its time, and where that is known by its
//! size, when that file is read, and is an error that names `rdpm index --refresh`.
//!
//! The file is `$XDG_CACHE_HOME/rdpm/index/HASH.index` (`~/.cache`), HASH of the real paths. In it:
//! `rdpmindx`, the length of a head u64, the head (JSON), the columns of [`table`], and the SHA-256
//! of all before. None is kept of single images, of gzipped shards (they are read whole at each
//! start), of sets with something bad, or with names that are not UTF-8.

mod table;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use memmap2::Mmap;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use self::table::Bounds;
pub(super) use self::table::{Item, Table};
use super::Classes;
use super::part::{Kind, Notice, Part};
use super::paths::Given;
use super::source::lookers;
use super::stamp::{self, Moment, Stamp};
use super::transient::patiently;
use crate::error::{Context, Error, Result, hinted};
use crate::store::atomic;
use crate::store::digest::hex;

const MAGIC: &[u8; 8] = b"rdpmindx";

/// Raised whenever the layout of the file or the rule of what is data changes.
const VERSION: u32 = 2;

const DIGEST: usize = 32;

/// Folders and shards that are worth threads of their own.
const MANY: usize = 64;

/// What an index says of a set, beside its images.
#[derive(Serialize, Deserialize)]
struct Head {
    version: u32,
    /// The program's, whose rule of what is data it was.
    program: String,
    /// The real paths.
    paths: Vec<String>,
    parts: Vec<PartHead>,
    images: usize,
    /// Bytes of all names.
    names: usize,
    classes: Classes,
    summary: String,
    doubts: Vec<String>,
    passed: Vec<String>,
    sharing: Option<String>,
    fingerprint: String,
}

impl Head {
    /// What the table of this index must agree with.
    fn bounds<'a>(&self, shards: &'a [Option<u64>]) -> Bounds<'a> {
        Bounds {
            images: self.images,
            names: self.names,
            shards,
            labels: self.classes.len().max(1) as u32,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct PartHead {
    is_shard: bool,
    found_in: Vec<(Box<str>, Stamp)>,
    fields: Vec<(Box<str>, Stamp)>,
    notices: Vec<Notice>,
    looked: Option<Moment>,
}

/// What is to be kept.
pub(super) struct Contents<'a> {
    pub parts: &'a [Part],
    pub table: &'a Table,
    pub classes: &'a Classes,
    pub summary: &'a str,
    pub doubts: Vec<String>,
    pub passed: &'a [String],
    pub sharing: &'a Option<String>,
    pub fingerprint: &'a str,
}

/// What was kept.
pub(super) struct Saved {
    pub path: PathBuf,
    pub parts: Vec<Part>,
    pub table: Table,
    pub classes: Classes,
    pub summary: String,
    pub doubts: Vec<String>,
    pub passed: Vec<String>,
    pub sharing: Option<String>,
    pub fingerprint: String,
}

/// The index of what is given, if there is one and it still fits.
pub(super) fn find(given: &[Given]) -> Option<Saved> {
    find_in(&folder()?, given)
}

fn find_in(folder: &Path, given: &[Given]) -> Option<Saved> {
    let parts = given.iter().map(|given| match given {
        Given::Folder(path) => Some(Part::new(path.clone(), Kind::Folder)),
        Given::Shard(path) => Some(Part::new(path.clone(), Kind::Shard)),
        Given::Images { .. } => None,
    });
    let parts: Vec<Part> = parts.collect::<Option<_>>()?;
    let paths = real_paths(&parts)?;
    let path = place(folder, &paths);
    let file = File::open(&path).ok()?;
    let read = read(&file, &path, parts, &paths);
    read.map_err(|why| tracing::info!("{}: {why}; the data is looked through", path.display()))
        .ok()
}

/// The error says why the index is not taken.
fn read(file: &File, path: &Path, mut parts: Vec<Part>, paths: &[String]) -> Result<Saved, String> {
    // SAFETY: an index is only ever replaced by the rename of a temporary, which leaves this
    // mapping what it is.
    let map = unsafe { Mmap::map(file) }.map_err(|e| e.to_string())?;
    let damaged = |what: &str| format!("a damaged index ({what})");
    let (all, digest) = map
        .split_last_chunk::<DIGEST>()
        .ok_or_else(|| damaged("it is too short"))?;
    let (start, rest) = all
        .split_first_chunk::<16>()
        .ok_or_else(|| damaged("it is too short"))?;
    let (magic, length) = start.split_at(8);
    if magic != MAGIC {
        return Err("no index".to_string());
    }
    let length = u64::from_le_bytes(length.try_into().unwrap_or_default());
    let head = usize::try_from(length).ok().and_then(|n| rest.get(..n));
    let head = head.ok_or_else(|| damaged("its head is longer than the file"))?;
    if Sha256::digest(all).as_slice() != digest {
        return Err(damaged("its checksum differs"));
    }
    let begin = 16 + head.len();
    let mut head: Head = serde_json::from_slice(head).map_err(|e| damaged(&e.to_string()))?;
    if head.version != VERSION || head.program != env!("CARGO_PKG_VERSION") {
        return Err("an index of another version".to_string());
    }
    if head.paths != paths || head.parts.len() != parts.len() {
        return Err("an index of other paths".to_string());
    }
    for (part, kept) in parts.iter_mut().zip(std::mem::take(&mut head.parts)) {
        if kept.is_shard != (part.kind == Kind::Shard) {
            return Err("a shard or a folder is there for the other".to_string());
        }
        part.found_in = kept.found_in;
        part.fields = kept.fields;
        part.notices = kept.notices;
        part.looked = kept.looked;
    }
    if let Some(changed) = changed(&parts) {
        return Err(format!("{changed} has changed since it was made"));
    }
    let shards: Vec<Option<u64>> = parts.iter().map(Part::shard_size).collect();
    let table = Table::of_map(map, begin, &head.bounds(&shards)).map_err(damaged)?;
    for part in &mut parts {
        // They have told what they can: the shard's stamp alone is needed again.
        part.fields = Vec::new();
        part.found_in
            .truncate(usize::from(part.kind == Kind::Shard));
    }
    Ok(Saved {
        path: path.to_path_buf(),
        parts,
        table,
        classes: head.classes,
        summary: head.summary,
        doubts: head.doubts,
        passed: head.passed,
        sharing: head.sharing,
        fingerprint: head.fingerprint,
    })
}

/// Reads the file at `path` as the index of a set that is the folder `/`, and looks at its first
/// images.
///
/// Errors: it is none.
pub(crate) fn read_index(path: &Path) -> Result<bool> {
    let root = Path::new("/");
    let parts = vec![Part::new(root.to_path_buf(), Kind::Folder)];
    let paths = ["/".to_string()];
    let saved = read(&File::open(path)?, path, parts, &paths).map_err(Error::msg)?;
    let paths = (0..saved.table.len().min(64)).map(|index| {
        let item = saved.table.item(index);
        saved.parts[item.part].path_of(item.name)
    });
    Ok(paths.map(|path| path.len()).sum::<usize>() > 0)
}

/// The first thing that is not what it was.
fn changed(parts: &[Part]) -> Option<String> {
    let all = parts.iter().flat_map(|part| {
        part.found_in
            .iter()
            .chain(&part.fields)
            .map(move |f| (part, f))
    });
    let all: Vec<_> = all.collect();
    let first = || {
        all.par_iter().find_map_first(|(part, (name, stamp))| {
            let path = path_of(part, name);
            let now = patiently(&path.display(), || fs::metadata(&path));
            let is_same = now.is_ok_and(|now| Stamp::of(&now) == *stamp);
            (!is_same).then(|| path.display().to_string())
        })
    };
    // Threads that wait for a file server, where there is much to wait for.
    match all.len() > MANY {
        true => match lookers() {
            Ok(threads) => threads.install(first),
            Err(_) => first(),
        },
        false => first(),
    }
}

/// Waits until whatever changes from now on shows.
pub(super) fn settle(parts: &[Part]) {
    let mut stamps = parts
        .iter()
        .flat_map(|part| part.found_in.iter().chain(&part.fields));
    let now = stamp::now();
    if stamps.any(|(_, stamp)| !stamp.is_telling(now)) {
        std::thread::sleep(Duration::from_secs(3));
    }
}

/// Keeps an index; gives where, and the table as it is read from there.
///
/// Errors: a set of which none can be kept, with why; a folder that cannot be written to.
pub(super) fn save(contents: Contents) -> Result<(PathBuf, Table)> {
    let folder = folder().ok_or_else(|| {
        hinted(
            "no folder for an index: neither HOME nor XDG_CACHE_HOME is set",
            "set one of them",
        )
    })?;
    save_in(&folder, contents, stamp::now())
}

/// Why no index can be kept, and what can be done about it.
pub(super) struct Obstacle {
    what: String,
    hint: &'static str,
}

impl Obstacle {
    fn of(parts: &[Part], table: &Table, now: i64) -> Option<Self> {
        let obstacle = |what: String, hint| Some(Self { what, hint });
        for part in parts {
            let path = part.path.display();
            if part.kind == Kind::Image {
                return obstacle("images that are named".to_string(), "name their folder");
            }
            if part.memory.is_some() {
                return obstacle(
                    format!("{path}: gzipped shards are read whole at each start"),
                    "unpack them with `gunzip -k` and name the .tar files",
                );
            }
            if part.bad > 0 || (part.kind == Kind::Folder && part.passed.links.count > 0) {
                return obstacle(
                    format!("{path}: something in it is bad, and may be mended"),
                    "the warnings above say what",
                );
            }
            if part.unprintable {
                return obstacle(
                    format!("{path}: it has names that are not UTF-8"),
                    "rename them",
                );
            }
            let mut all = part.found_in.iter().chain(&part.fields);
            if let Some((name, _)) = all.find(|(_, stamp)| !stamp.is_telling(now)) {
                return obstacle(
                    format!("{}: it has just changed", path_of(part, name).display()),
                    "the next start keeps one",
                );
            }
        }
        match table.has_rare() {
            true => obstacle(
                "names that are not UTF-8, or of sparse members of shards".to_string(),
                "rename the files, or make the shards again",
            ),
            false => None,
        }
    }
}

/// Why no index can be kept of these, if so.
pub(super) fn obstacle(parts: &[Part], table: &Table) -> Option<String> {
    Obstacle::of(parts, table, stamp::now()).map(|obstacle| obstacle.what)
}

/// The folder or file of a part that is called `name` in it: the part itself has no name.
fn path_of(part: &Part, name: &str) -> PathBuf {
    match name.is_empty() {
        true => part.path.clone(),
        false => part.path.join(name),
    }
}

fn save_in(folder: &Path, contents: Contents, now: i64) -> Result<(PathBuf, Table)> {
    let Contents { parts, table, .. } = contents;
    if let Some(Obstacle { what, hint }) = Obstacle::of(parts, table, now) {
        return Err(hinted(format!("no index is kept of {what}"), hint));
    }
    let Some(paths) = real_paths(parts) else {
        return Err(hinted(
            "no index is kept of paths that are not UTF-8",
            "rename them",
        ));
    };
    let path = place(folder, &paths);
    let head = Head {
        version: VERSION,
        program: env!("CARGO_PKG_VERSION").to_string(),
        paths,
        parts: parts.iter().map(part_head).collect(),
        images: table.len(),
        names: table.names_len(),
        classes: contents.classes.clone(),
        summary: contents.summary.to_string(),
        doubts: contents.doubts,
        passed: contents.passed.to_vec(),
        sharing: contents.sharing.clone(),
        fingerprint: contents.fingerprint.to_string(),
    };
    let shards: Vec<Option<u64>> = parts.iter().map(Part::shard_size).collect();
    fs::create_dir_all(folder).with_context(|| format!("could not make {}", folder.display()))?;
    atomic::write_with(&path, |file| Ok(write(&head, table, file)?))?;
    let read = || -> Result<Table> {
        let file = File::open(&path)?;
        // SAFETY: as above.
        let map = unsafe { Mmap::map(&file) }?;
        let length: [u8; 8] = map[8..16].try_into().unwrap_or_default();
        let begin = 16 + u64::from_le_bytes(length) as usize;
        Table::of_map(map, begin, &head.bounds(&shards)).map_err(Error::msg)
    };
    let table = read().with_context(|| format!("could not read {}", path.display()))?;
    Ok((path, table))
}

fn part_head(part: &Part) -> PartHead {
    PartHead {
        is_shard: part.kind == Kind::Shard,
        found_in: part.found_in.clone(),
        fields: part.fields.clone(),
        notices: part.notices.clone(),
        looked: part.looked,
    }
}

fn write(head: &Head, table: &Table, file: &mut impl Write) -> io::Result<()> {
    let mut out = Digested {
        inner: file,
        digest: Sha256::new(),
    };
    let head = serde_json::to_vec(head)?;
    out.write_all(MAGIC)?;
    out.write_all(&(head.len() as u64).to_le_bytes())?;
    out.write_all(&head)?;
    table.write(&mut out)?;
    let digest = out.digest.clone().finalize();
    out.inner.write_all(&digest)
}

/// Takes the digest of what is written.
struct Digested<W> {
    inner: W,
    digest: Sha256,
}

impl<W: Write> Write for Digested<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.digest.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The folder of all indices.
fn folder() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let cache = set("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(set("HOME")?).join(".cache")))?;
    Some(cache.join("rdpm/index"))
}

/// Where the index of these paths is.
fn place(folder: &Path, paths: &[String]) -> PathBuf {
    let mut digest = Sha256::new();
    for path in paths {
        digest.update(path.as_bytes());
        digest.update([0]);
    }
    folder.join(format!("{}.index", &hex(&digest.finalize())[..32]))
}

/// The paths without links, whatever they were called; none if one is not UTF-8.
fn real_paths(parts: &[Part]) -> Option<Vec<String>> {
    let real = |part: &Part| {
        part.path
            .canonicalize()
            .ok()?
            .into_os_string()
            .into_string()
            .ok()
    };
    parts.iter().map(real).collect()
}

#[cfg(test)]
mod tests;
