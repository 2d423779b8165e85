//! The files in a tar, found from its headers alone, including what PAX, GNU and plain ustar say
//! about names, sizes, links and holes.
//!
//! Follows Python's `tarfile`: contiguous members are files, hard links are the member that they
//! name, and unknown types are skipped. In addition, symbolic links within the shard are followed
//! (as in a folder), and concatenated archives are all read.

mod header;
mod sparse;

use std::collections::HashMap;

use self::header::{BLOCK, Header, Kind, Pax, rounded};
use super::part::{Listed, Place, Shard, Tally};
use super::selection::printable;

/// The contents of the intact part of a shard.
#[derive(Debug, Default)]
pub(super) struct Members {
    pub files: Vec<Listed>,
    /// Folders that have their own member.
    pub folders: Vec<String>,
    /// Links whose target is not a file of the shard.
    pub links: Tally,
    /// Number of links read as their target files.
    pub followed: usize,
    /// Number of concatenated archives.
    pub archives: u32,
    /// Length of the intact part.
    pub end: u64,
    /// Bytes after the last closing block that are not an archive.
    pub behind: u64,
}

/// A member that is a file, and its position.
struct Entry {
    name: String,
    archive: u32,
    target: Target,
}

enum Target {
    Data(Place),
    /// The last earlier member of this name.
    HardLink(String),
    /// Any member of this name.
    SymbolicLink(String),
}

/// Reads all headers of `tar`. The second value is the error, if the shard is not intact.
pub(super) fn members(tar: &impl Shard) -> (Members, Option<String>) {
    let mut reader = Reader {
        tar,
        length: 0,
        said: Said::default(),
        global: Pax::default(),
        entries: Vec::new(),
        members: Members::default(),
    };
    let damage = reader.read().err();
    let mut members = reader.members;
    resolve(reader.entries, &mut members);
    (members, damage)
}

/// Why a shard is not intact.
type Damage<T> = Result<T, String>;

/// What preceding headers say about a member.
#[derive(Default)]
struct Said {
    /// GNU's long names.
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Option<Pax>,
}

struct Reader<'a, S> {
    tar: &'a S,
    length: u64,
    said: Said,
    /// Values that hold for all members of an archive.
    global: Pax,
    entries: Vec<Entry>,
    members: Members,
}

impl<S: Shard> Reader<'_, S> {
    fn read(&mut self) -> Damage<()> {
        self.length = self.tar.length().map_err(|e| e.to_string())?;
        let (mut at, mut closed) = (0, false);
        while at + BLOCK <= self.length {
            let mut block = [0; BLOCK as usize];
            let read = self.tar.read_at(&mut block, at);
            read.map_err(|e| e.to_string())?;
            if block.iter().all(|byte| *byte == 0) {
                self.nothing_said()?;
                (closed, at) = (true, at + BLOCK);
                continue;
            }
            let header = match Header::new(block) {
                Some(header) => header,
                None if closed => break,
                None => return Err(format!("no tar header at byte {at}")),
            };
            if closed || at == 0 {
                (closed, self.global) = (false, Pax::default());
                self.members.archives += 1;
            }
            at = self.member(at + BLOCK, &header)?;
            self.members.end = at;
        }
        self.nothing_said()?;
        match closed {
            true => self.members.behind = self.length - at,
            false => return Err("the closing block is missing".to_string()),
        }
        Ok(())
    }

    fn nothing_said(&self) -> Damage<()> {
        match self.said {
            Said {
                name: None,
                link: None,
                pax: None,
            } => Ok(()),
            _ => Err("an extended header has no member behind it".to_string()),
        }
    }

    /// Processes one header and the data after it, from `data` on; returns the position of the next
    /// header.
    fn member(&mut self, data: u64, header: &Header) -> Damage<u64> {
        let kind = header.kind();
        match kind {
            Kind::LongName | Kind::LongLink | Kind::Pax | Kind::GlobalPax => {
                let end = self.within(data, header.size()?, "an extended header")?;
                let text = header::text(self.tar, data, end - data)?;
                match kind {
                    Kind::LongName => self.said.name = Some(header::until_nul(&text).to_vec()),
                    Kind::LongLink => self.said.link = Some(header::until_nul(&text).to_vec()),
                    Kind::Pax => self.said.pax = Some(Pax::parse(&text)?),
                    _ => self.global.merge(Pax::parse(&text)?),
                }
                return Ok(rounded(end));
            }
            _ => {}
        }
        let said = std::mem::take(&mut self.said);
        let mut pax = self.global.clone();
        pax.merge(said.pax.unwrap_or_default());
        let name = pax.sparse_name.take().or(pax.path.take()).or(said.name);
        let name = name.unwrap_or_else(|| header.name());
        // The oldest tars have no type for folders.
        let is_folder = kind == Kind::Folder || (kind == Kind::File && name.ends_with(b"/"));
        let name = inside(normal(&printable(&name)));
        // For links, folders and devices the size has no meaning.
        let size = match kind {
            Kind::HardLink | Kind::SymbolicLink | Kind::Folder | Kind::Device => 0,
            _ => pax.size.map_or_else(|| header.size(), Ok)?,
        };
        let end = self.within(data, size, &format!("`{name}`"))?;
        let named = |e: String| format!("`{name}`: {e}");
        let (target, end) = match kind {
            Kind::Sparse => {
                let (place, end) = sparse::old(self.tar, data, size, header).map_err(named)?;
                (
                    Target::Data(place),
                    self.within(end, 0, &format!("`{name}`"))?,
                )
            }
            Kind::File if pax.is_sparse() => {
                (Target::Data(sparse::pax(self.tar, data, size, &pax)), end)
            }
            Kind::File => (Target::Data(Place::Member { offset: data, size }), end),
            Kind::HardLink | Kind::SymbolicLink => {
                let target = pax.link_path.or(said.link).unwrap_or_else(|| header.link());
                let target = printable(&target);
                let target = match kind {
                    Kind::HardLink => Target::HardLink(normal(&target)),
                    _ => Target::SymbolicLink(beside(&name, &target)),
                };
                (target, end)
            }
            _ => {
                if is_folder {
                    self.members.folders.push(name);
                }
                return Ok(rounded(end));
            }
        };
        if is_folder {
            self.members.folders.push(name);
        } else {
            self.entries.push(Entry {
                name,
                archive: self.members.archives,
                target,
            });
        }
        Ok(rounded(end))
    }

    /// The end of `what`, which starts at `data`.
    fn within(&self, data: u64, size: u64, what: &str) -> Damage<u64> {
        match data.saturating_add(size) {
            end if end <= self.length => Ok(end),
            end => Err(format!(
                "{what} ends at byte {end}, the shard at {}",
                self.length
            )),
        }
    }
}

/// Lists the files, with each link as its target file.
fn resolve(entries: Vec<Entry>, members: &mut Members) {
    let any_link = |entry: &Entry| !matches!(entry.target, Target::Data(_));
    // Names take memory, and most shards have no links.
    let any_link = entries.iter().any(any_link);
    let (mut places, mut symbolic) = (HashMap::new(), HashMap::new());
    for entry in entries.iter().filter(|_| any_link) {
        let key = (entry.archive, entry.name.as_str());
        match &entry.target {
            Target::Data(place) => drop(places.insert(key, place.clone())),
            Target::SymbolicLink(target) => drop(symbolic.insert(key, target.as_str())),
            Target::HardLink(target) => {
                let target = places.get(&(entry.archive, target.as_str())).cloned();
                target.map(|place| places.insert(key, place));
            }
        }
    }
    let found = |entry: &Entry| match &entry.target {
        Target::Data(place) => Some(place.clone()),
        Target::HardLink(_) => places.get(&(entry.archive, entry.name.as_str())).cloned(),
        Target::SymbolicLink(target) => {
            let mut key = (entry.archive, target.as_str());
            // Links may lead to links, and form cycles.
            for _ in 0..40 {
                match (places.get(&key), symbolic.get(&key)) {
                    (Some(place), _) => return Some(place.clone()),
                    (None, Some(next)) => key.1 = next,
                    (None, None) => return None,
                }
            }
            None
        }
    };
    let files: Vec<Option<Place>> = entries.iter().map(found).collect();
    for (entry, place) in entries.into_iter().zip(files) {
        let Entry {
            name,
            archive,
            target,
        } = entry;
        if place.is_some() && !matches!(target, Target::Data(_)) {
            members.followed += 1;
        }
        match place {
            Some(place) => members.files.push(Listed {
                name,
                place,
                archive,
            }),
            None => members.links.add(|| name),
        }
    }
}

/// The name of the member that a symbolic link named `name` leads to.
fn beside(name: &str, target: &str) -> String {
    match name.rsplit_once('/') {
        Some((folder, _)) if !target.starts_with('/') => normal(&format!("{folder}/{target}")),
        _ => normal(target),
    }
}

/// A name that leads out of the shard, as tar unpacks it: within the folder after all.
fn inside(name: String) -> String {
    let parts = name.split('/').skip_while(|part| *part == "..");
    parts.collect::<Vec<_>>().join("/")
}

/// A member's name without `./` or a leading `/`, with `..` resolved if possible.
fn normal(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            other => parts.push(other),
        }
    }
    parts.join("/")
}
