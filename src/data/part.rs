//! What the scan of one path finds: images by name, where their bytes are, and the class that the data gives them.

use std::path::PathBuf;

/// A class as the data names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ClassName {
    /// The index itself.
    Number(u32),
    Name(String),
}

/// Where an image's bytes are.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    /// A file of its own.
    File,
    Member {
        offset: u64,
        size: u64,
    },
}

/// An image as a scan finds it.
#[derive(Debug)]
pub(super) struct Found {
    /// Relative to the path of its part.
    pub name: String,
    pub class: Option<ClassName>,
    pub place: Place,
}

/// What one path holds.
#[derive(Debug)]
pub(super) struct Part {
    pub path: PathBuf,
    /// A gzipped shard, decompressed.
    pub memory: Option<Vec<u8>>,
    pub found: Vec<Found>,
    /// Class folders without images.
    pub empty_classes: Vec<String>,
    /// Pieces of a damaged shard that were left out.
    pub bad: usize,
}

impl Part {
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            memory: None,
            found: Vec::new(),
            empty_classes: Vec::new(),
            bad: 0,
        }
    }

    /// The path of an image in messages.
    pub fn path_of(&self, name: &str, place: Place) -> String {
        match place {
            Place::File => self.path.join(name).display().to_string(),
            Place::Member { .. } => format!("{}: {name}", self.path.display()),
        }
    }
}
