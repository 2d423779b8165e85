//! What the scan of one path finds: images by name, where their bytes are, and what the data says
//! of their class.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::found::FoundList;
use super::stamp::{Moment, Stamp};
use super::transient::patiently;
use crate::error::{Error, Result};

/// A class as the data names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum ClassName {
    /// The index itself.
    Number(u32),
    /// One text for the images of a folder: there are millions.
    Name(Arc<str>),
}

/// The size of a file that nobody has looked at yet.
pub(super) const UNKNOWN: u64 = u64::MAX;

/// Where a file's bytes are.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// A file of its own, of the name it was found by.
    File { size: u64 },
    /// A file whose name is not UTF-8, as the system has it.
    Unprintable { path: Arc<Path>, size: u64 },
    /// A member of a tar shard.
    Member { offset: u64, size: u64 },
    /// A member that was stored without its holes.
    Sparse(Arc<Sparse>),
    /// A member that cannot be read; says why.
    Refused(Arc<str>),
}

/// Of `size` bytes, those that are not zero.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sparse {
    pub size: u64,
    pub pieces: Vec<Piece>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// In the file.
    pub at: u64,
    /// In the shard.
    pub offset: u64,
    pub length: u64,
}

/// A file as a folder or a shard lists it.
#[derive(Debug)]
pub(super) struct Listed {
    /// Relative to the path of its part, with `/` between folders.
    pub name: String,
    pub place: Place,
    /// Which of the tar archives that lie one behind another in a shard; 0 elsewhere.
    pub archive: u32,
}

/// What the files beside an image say of its class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Label {
    /// There are none.
    None,
    /// There are some, and they are silent about it.
    Silent,
    /// Of a field made for it: `.cls`, `.json`.
    Field(ClassName),
    /// Of a `.txt`, which may as well be a caption.
    Text(ClassName),
    /// A class that cannot be; says why.
    Bad(String),
    /// What cannot be read, and may be silent about it; says why.
    Unreadable(String),
}

/// What kind of path a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Folder,
    Shard,
    Image,
}

/// A folder without images.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bare {
    /// Relative to the path of its part.
    pub name: String,
    /// What it holds instead.
    pub held: Held,
}

/// What was passed over in a folder.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Held {
    /// As a message names it; none where it is texts alone, or nothing.
    pub what: Option<String>,
    /// They are pictures: of a kind that is not read, or behind broken links.
    pub are_pictures: bool,
}

/// How many files of a kind were passed over, and the first of them.
#[derive(Debug, Default, Clone)]
pub(super) struct Tally {
    pub count: usize,
    pub first: String,
}

impl Tally {
    pub fn add(&mut self, first: impl FnOnce() -> String) {
        if self.count == 0 {
            self.first = first();
        }
        self.count += 1;
    }

    pub fn merge(&mut self, other: &Tally) {
        if self.count == 0 {
            self.first.clone_from(&other.first);
        }
        self.count += other.count;
    }
}

/// Files of kinds that are not read.
#[derive(Debug, Default)]
pub(super) struct Kinds(BTreeMap<String, Tally>);

impl Kinds {
    /// How many kinds a message names.
    const NAMED: usize = 12;

    pub fn add(&mut self, kind: String, first: impl FnOnce() -> String) {
        self.0.entry(kind).or_default().add(first);
    }

    /// The first file of a kind that `is` one.
    pub fn first(&self, is: impl Fn(&str) -> bool) -> Option<&str> {
        let found = self.0.iter().find(|(kind, _)| is(kind));
        found.map(|(_, tally)| tally.first.as_str())
    }

    /// How many there are of each kind, and the first; none if there are none.
    pub fn list(&self) -> Option<String> {
        let named = self.0.iter().take(Self::NAMED);
        let mut list: Vec<String> = named
            .map(|(kind, tally)| format!("{} {kind} (`{}`)", tally.count, tally.first))
            .collect();
        match self.0.len() - list.len() {
            0 => {}
            more => list.push(format!("and {more} more kinds")),
        }
        (!list.is_empty()).then(|| list.join(", "))
    }

    /// The warning of them.
    pub fn line(&self) -> Option<String> {
        let list = self.list()?;
        Some(format!(
            "passed over as files of kinds that are not read: {list}"
        ))
    }
}

/// What was passed over, by the reason for it.
#[derive(Debug, Default)]
pub(super) struct PassedOver {
    /// Files of kinds that are not read, by kind.
    pub kinds: Kinds,
    /// Images with a hidden or a system's part in their path.
    pub hidden: Tally,
    /// A second image of one key: a mask.
    pub second: Tally,
    /// Members that a later one of the same name replaces.
    pub replaced: Tally,
    /// Links that lead nowhere or out of the shard.
    pub links: Tally,
    /// Images that share their name but for the ending, and are all taken.
    pub sharing: Tally,
    /// Files whose name makes them a label, but of no image.
    pub strays: Tally,
}

impl PassedOver {
    pub fn merge(&mut self, other: &PassedOver) {
        for (kind, tally) in &other.kinds.0 {
            self.kinds.0.entry(kind.clone()).or_default().merge(tally);
        }
        for (mine, theirs) in [
            (&mut self.hidden, &other.hidden),
            (&mut self.second, &other.second),
            (&mut self.replaced, &other.replaced),
            (&mut self.links, &other.links),
            (&mut self.sharing, &other.sharing),
            (&mut self.strays, &other.strays),
        ] {
            mine.merge(theirs);
        }
    }
}

/// What one path holds.
#[derive(Debug)]
pub(super) struct Part {
    pub path: PathBuf,
    pub kind: Kind,
    /// A gzipped shard, decompressed.
    pub memory: Option<Vec<u8>>,
    pub found: FoundList,
    pub bare: Vec<Bare>,
    pub passed: PassedOver,
    /// The endings of fields beside images that have no class.
    pub silent: BTreeSet<String>,
    /// Why it holds nothing at all, where that is no error if others do.
    pub empty: Option<String>,
    /// Whether a `.txt` beside an image is a text of its own.
    pub captions: bool,
    /// Images, or pieces of a damaged shard, that were left out.
    pub bad: usize,
    /// What is said of it whenever it is opened.
    pub notices: Vec<Notice>,
    /// What it was found from, and when that last changed: a shard, or the folders of a folder.
    pub found_in: Vec<(Box<str>, Stamp)>,
    /// The files beside images that were read for their classes.
    pub fields: Vec<(Box<str>, Stamp)>,
    /// When the look at a folder began: what is written to a file later is found when it is read.
    /// None where the clock of its files is another.
    pub looked: Option<Moment>,
    /// A name in `found_in` or `fields` is not what the system calls it.
    pub unprintable: bool,
}

/// A line of the log about a part, without its path.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Notice {
    pub warns: bool,
    pub text: String,
}

impl Part {
    pub fn new(path: PathBuf, kind: Kind) -> Self {
        Self {
            path,
            kind,
            memory: None,
            found: FoundList::default(),
            bare: Vec::new(),
            passed: PassedOver::default(),
            silent: BTreeSet::new(),
            empty: None,
            captions: false,
            bad: 0,
            notices: Vec::new(),
            found_in: Vec::new(),
            fields: Vec::new(),
            looked: None,
            unprintable: false,
        }
    }

    pub fn notice(&mut self, warns: bool, text: String) {
        self.notices.push(Notice { warns, text });
    }

    /// Writes what there is to say of it to the log.
    pub fn say(&self) {
        let path = self.path.display();
        for Notice { warns, text } in &self.notices {
            match warns {
                true => tracing::warn!("{path}: {text}"),
                false => tracing::info!("{path}: {text}"),
            }
        }
    }

    /// Adds what was found in a folder of this one.
    pub fn merge(&mut self, folder: Part) {
        self.found.extend(folder.found);
        self.passed.merge(&folder.passed);
        self.silent.extend(folder.silent);
        self.captions |= folder.captions;
        self.bad += folder.bad;
        self.found_in.extend(folder.found_in);
        self.fields.extend(folder.fields);
        self.unprintable |= folder.unprintable;
    }

    /// The size of the shard, as it was found.
    pub fn shard_size(&self) -> Option<u64> {
        let stamp = self.found_in.first().map(|(_, stamp)| stamp.size());
        stamp.filter(|_| self.kind == Kind::Shard)
    }

    /// What was passed over where there are no images, as a message ends.
    pub fn instead(&self) -> String {
        let mut found: Vec<String> = self.passed.kinds.list().into_iter().collect();
        if self.passed.hidden.count > 0 {
            let Tally { count, first } = &self.passed.hidden;
            found.push(format!("{count} hidden (`{first}`)"));
        }
        match found.is_empty() {
            true => String::new(),
            false => format!("; passed over: {}", found.join(", ")),
        }
    }

    /// The path of a file in messages.
    pub fn path_of(&self, name: &str) -> String {
        match self.kind {
            Kind::Folder | Kind::Image => self.path.join(name).display().to_string(),
            Kind::Shard => format!("{}: {name}", self.path.display()),
        }
    }

    /// All bytes of the file `name` at `place`.
    ///
    /// Errors: [`Changed`], or what the system says.
    pub fn bytes(&self, name: &str, place: &Place) -> Result<Vec<u8>> {
        match place {
            Place::File { size } => whole(&self.path.join(name), *size, self.looked),
            Place::Unprintable { path, size } => whole(path, *size, self.looked),
            Place::Member { .. } | Place::Sparse(_) | Place::Refused(_) => match &self.memory {
                Some(tar) => Ok(place.read(&tar.as_slice())?),
                None => self.member(place),
            },
        }
    }

    fn member(&self, place: &Place) -> Result<Vec<u8>> {
        let (found, bytes) = patiently(&self.path.display(), || {
            // Opened for every image: thousands of shards would exceed the limit of open files.
            let file = File::open(&self.path)?;
            let found = Stamp::of(&file.metadata()?);
            match self.found_in.first() {
                Some((_, stamp)) if *stamp != found => Ok((found, Vec::new())),
                _ => Ok((found, place.read(&&file)?)),
            }
        })?;
        match self.found_in.first() {
            Some((_, stamp)) if *stamp != found => Err(Error::new(Changed {
                found: found.size(),
                expected: stamp.size(),
            })),
            _ => Ok(bytes),
        }
    }

    /// How many bytes the file `name` at `place` has, and whether it was written to since the look.
    pub fn size(&self, name: &str, place: &Place) -> io::Result<(u64, bool)> {
        let look = |path: &Path| {
            let metadata = patiently(&path.display(), || std::fs::metadata(path))?;
            let is_new = (self.looked).is_some_and(|looked| looked.is_before_content_of(&metadata));
            Ok((metadata.len(), is_new))
        };
        match place {
            Place::File { size: UNKNOWN } => look(&self.path.join(name)),
            Place::Unprintable {
                path,
                size: UNKNOWN,
            } => look(path),
            Place::File { size } | Place::Unprintable { size, .. } => Ok((*size, false)),
            Place::Member { size, .. } => Ok((*size, false)),
            Place::Sparse(sparse) => Ok((sparse.size, false)),
            Place::Refused(_) => Ok((0, false)),
        }
    }
}

/// All bytes of the file at `path`, which had `expected` when it was found, if that is known, and
/// was last written to before it was `looked` at.
fn whole(path: &Path, expected: u64, looked: Option<Moment>) -> Result<Vec<u8>> {
    let (metadata, bytes) = patiently(&path.display(), || {
        let mut file = File::open(path)?;
        let metadata = file.metadata()?;
        let mut bytes = Vec::with_capacity(metadata.len() as usize);
        file.read_to_end(&mut bytes)?;
        Ok((metadata, bytes))
    })?;
    let found = bytes.len() as u64;
    if expected != UNKNOWN && found != expected {
        return Err(Error::new(Changed { found, expected }));
    }
    match looked.is_some_and(|looked| looked.is_before_content_of(&metadata)) {
        false => Ok(bytes),
        true => {
            let expected = found;
            Err(Error::new(Changed { found, expected }))
        }
    }
}

/// The error of a file that is not what it was when it was found.
#[derive(Debug)]
pub(super) struct Changed {
    pub found: u64,
    pub expected: u64,
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.found == self.expected {
            true => write!(f, "it has been written to since it was indexed"),
            false => write!(
                f,
                "it has {} bytes, and had {} when it was indexed",
                self.found, self.expected
            ),
        }
    }
}

impl std::error::Error for Changed {}

/// A shard that can be read anywhere.
pub(super) trait Shard {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
    fn length(&self) -> io::Result<u64>;
}

impl Shard for &File {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(bytes, offset)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

/// A shard whose reads are tried again.
pub(super) struct OnDisk<'a> {
    pub file: &'a File,
    pub path: &'a Path,
}

impl Shard for OnDisk<'_> {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        patiently(&self.path.display(), || {
            self.file.read_exact_at(bytes, offset)
        })
    }

    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }
}

impl Shard for &[u8] {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset).ok();
        let range = from.and_then(|from| self.get(from..)?.get(..bytes.len()));
        bytes.copy_from_slice(range.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

impl Place {
    /// The bytes of a member of `shard`, or `most` of them.
    pub fn start(&self, shard: &impl Shard, most: u64) -> io::Result<Vec<u8>> {
        match *self {
            Place::Member { offset, size } => {
                let size = size.min(most);
                Place::Member { offset, size }.read(shard)
            }
            _ => self.read(shard),
        }
    }

    /// The bytes of a member of `shard`.
    pub fn read(&self, shard: &impl Shard) -> io::Result<Vec<u8>> {
        match self {
            Place::Member { offset, size } => {
                let mut bytes = vec![0; *size as usize];
                shard.read_at(&mut bytes, *offset)?;
                Ok(bytes)
            }
            Place::Sparse(sparse) => {
                let mut bytes = vec![0; sparse.size as usize];
                for piece in &sparse.pieces {
                    let range = piece.at as usize..(piece.at + piece.length) as usize;
                    let range = bytes.get_mut(range).ok_or(io::ErrorKind::InvalidData)?;
                    shard.read_at(range, piece.offset)?;
                }
                Ok(bytes)
            }
            Place::Refused(reason) => Err(io::Error::other(reason.to_string())),
            Place::File { .. } | Place::Unprintable { .. } => {
                Err(io::ErrorKind::Unsupported.into())
            }
        }
    }
}
