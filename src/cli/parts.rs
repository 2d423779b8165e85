//! The parts of an output that processes make without knowing of each other, and their union: files
//! `part-I-of-N.npz` in a folder, each of which appears whole or not at all, and says in its array
//! `rdpm` (JSON) everything that decides the output.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::part::Part;
use crate::error::{Context, Error, Result, hinted, rehinted, usage};
use crate::store::npz::{Element, Npz, NpzWriter};

/// The name of the array that says what a part is of.
const IDENTITY: &str = "rdpm";

/// The parts of an output.
pub struct Parts {
    pub folder: PathBuf,
    /// What they are of: `images`.
    pub what: &'static str,
    /// What is done where there are none: `without the folder, …`.
    pub otherwise: &'static str,
    /// What else to do about parts of another output: `choose another …`.
    pub elsewhere: &'static str,
}

impl Parts {
    pub fn exist(&self) -> bool {
        self.folder.is_dir()
    }

    pub fn path(&self, part: Part) -> PathBuf {
        self.folder.join(part.name(".npz"))
    }

    /// Whether a part is to be made; makes the folder for it.
    ///
    /// Errors: it is there, and of another output.
    pub fn lacks(&self, part: Part, identity: &Value) -> Result<bool> {
        let path = self.path(part);
        if !path.exists() {
            fs::create_dir_all(&self.folder)
                .with_context(|| format!("could not make the folder {}", self.folder.display()))?;
            return Ok(true);
        }
        self.open_one(part, identity)?;
        tracing::info!("{} is there already", path.display());
        Ok(false)
    }

    /// Opens all parts of the output `identity`, in their order.
    ///
    /// Errors: parts of two divisions; missing ones; one of another output, or a damaged one.
    pub fn open(&self, identity: &Value) -> Result<Vec<Npz>> {
        let parts = Part::all_in(&self.folder, ".npz")?;
        let missing: Vec<String> = match parts[..] {
            [] => vec!["0/N".to_string()],
            _ => parts
                .iter()
                .filter(|part| !self.path(**part).exists())
                .map(|part| part.to_string())
                .collect(),
        };
        if let Some(first) = missing.first() {
            return Err(hinted(
                format!(
                    "{}: parts are missing: {}",
                    self.folder.display(),
                    missing.join(", ")
                ),
                format!(
                    "the same command with --part {first} makes one; {}",
                    self.otherwise
                ),
            ));
        }
        let open = |part| self.open_one(part, identity);
        parts.into_iter().map(open).collect()
    }

    /// Opens a part, and refuses one of another output by what differs first.
    fn open_one(&self, part: Part, identity: &Value) -> Result<Npz> {
        let path = self.path(part);
        let mut npz = Npz::open(&path).map_err(|e| damaged(&path, &e))?;
        let mut text = Vec::new();
        let read = npz.bytes(IDENTITY, usize::MAX, 1 << 16, |piece| {
            text.extend_from_slice(piece);
            Ok(())
        });
        let found = read.and_then(|()| Ok(serde_json::from_slice::<Value>(&text)?));
        let found = found.map_err(|error| damaged(&path, &error))?;
        for (key, expected) in of_part(identity, part).as_object().into_iter().flatten() {
            if found[key] != *expected {
                return Err(usage(
                    format!(
                        "{} is a part of other {}: its {key} is {}, expected {expected}",
                        path.display(),
                        self.what,
                        found[key]
                    ),
                    format!(
                        "all parts and the command that joins them need the same options; remove it, or {}",
                        self.elsewhere
                    ),
                ));
            }
        }
        Ok(npz)
    }
}

/// Writes what a part says of itself.
pub fn write_identity<W: std::io::Write + std::io::Seek>(
    npz: &mut NpzWriter<W>,
    identity: &Value,
    part: Part,
) -> Result<()> {
    let text = serde_json::to_vec(&of_part(identity, part))?;
    npz.array(IDENTITY, Element::U8, &[text.len()])?;
    npz.write(&text)
}

fn of_part(identity: &Value, part: Part) -> Value {
    let mut identity = identity.clone();
    identity["part"] = json!(part.to_string());
    identity
}

/// The error of a part whose bytes are not what was written.
pub fn damaged(path: &Path, error: &Error) -> Error {
    let error = rehinted(error, "remove this part, and make it again with --part");
    error.context(format!("cannot use {}", path.display()))
}
