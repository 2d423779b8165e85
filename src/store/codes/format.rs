//! The formats of codes files, for the programs that read them.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::npy;

/// A format of codes files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One file of named tensors
    Safetensors,
    /// A folder of NumPy arrays
    Npy,
    /// WebDataset: a tar with KEY.codes.npy and KEY.cls of every image
    Wds,
    /// A line of JSON per image
    Jsonl,
    /// A table with a row per image
    Parquet,
}

impl Format {
    /// The ending of its files; a folder of arrays has none.
    pub fn ending(self) -> Option<&'static str> {
        match self {
            Format::Safetensors => Some("safetensors"),
            Format::Npy => None,
            Format::Wds => Some("tar"),
            Format::Jsonl => Some("jsonl"),
            Format::Parquet => Some("parquet"),
        }
    }

    /// The format that a name ends in.
    pub fn of_name(path: &Path) -> Option<Format> {
        let ending = path.extension()?.to_str()?;
        let mut all = [
            Format::Safetensors,
            Format::Wds,
            Format::Jsonl,
            Format::Parquet,
        ]
        .into_iter();
        all.find(|format| format.ending() == Some(ending))
    }

    /// `stem` with the ending.
    pub fn name(self, stem: &str) -> PathBuf {
        match self.ending() {
            Some(ending) => format!("{stem}.{ending}").into(),
            None => stem.into(),
        }
    }

    /// What the file at `path` is by its first bytes. Whatever is none of the others may be
    /// safetensors, whose reader says what it found instead.
    pub fn of(path: &Path) -> Format {
        if path.is_dir() {
            return Format::Npy;
        }
        let mut start = Vec::new();
        if let Ok(file) = File::open(path) {
            // What cannot be read is an error of whoever reads it next.
            let _ = file.take(512).read_to_end(&mut start);
        }
        match start.as_slice() {
            [b'P', b'A', b'R', b'1', ..] => Format::Parquet,
            [b'{', b'"', ..] => Format::Jsonl,
            bytes if bytes.get(257..262) == Some(b"ustar") => Format::Wds,
            _ => Format::Safetensors,
        }
    }

    /// Whether `path` holds codes, for those who read other things too.
    pub fn is_codes(path: &Path) -> bool {
        match Format::of(path) {
            Format::Npy => npy::is_codes(path),
            Format::Safetensors => false,
            Format::Wds => super::wds::is_codes(path),
            Format::Jsonl => super::jsonl::is_codes(path),
            Format::Parquet => true,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Format::Safetensors => "safetensors",
            Format::Npy => "npy",
            Format::Wds => "wds",
            Format::Jsonl => "jsonl",
            Format::Parquet => "parquet",
        };
        f.write_str(name)
    }
}
