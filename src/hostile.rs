//! What reads bytes that others made, one function for each kind of file: the targets of fuzzing
//! (`fuzz/`, `scripts/fuzz.sh`) and of the replay of its corpus (`tests/hostile.rs`).
//!
//! A function returns whether the bytes were accepted. Whatever they are, it must return: no panic,
//! no hang, and no more than 1 GiB of memory.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::config::Config;
use crate::error::Result;
use crate::metrics::stats_file::Statistics;
use crate::store::bundle::Bundle;
use crate::store::codes::{Codes, read_noise};
use crate::store::npz::{Npy, Npz};
use crate::store::safetensors::Reader;
use crate::store::tensors;
use crate::train::{checkpoint, step_metrics::StepMetrics};
use crate::{data, world};

/// A target: its name and its function.
pub type Target = (&'static str, fn(&[u8]) -> bool);

/// All targets; the name of each is that of its corpus.
pub const TARGETS: [Target; 9] = [
    ("bundle", bundle),
    ("state", state),
    ("tar", tar),
    ("npz", npz),
    ("npy", npy),
    ("pth", pth),
    ("image", image),
    ("index", index),
    ("frame", frame),
];

/// Safetensors: a bundle, codes, noise, any tensors.
pub fn bundle(bytes: &[u8]) -> bool {
    with_file("a.safetensors", bytes, |path| {
        let reader = Reader::open(path)?;
        let accepted = [
            reader.header().is_ok() && reader.typed_tensors().is_ok(),
            Bundle::read(path).is_ok(),
            Codes::read(path).is_ok(),
            read_noise(path).is_ok(),
        ];
        Ok(accepted.contains(&true))
    })
}

/// The state of a checkpoint, a run's configuration, and a bundle's.
pub fn state(bytes: &[u8]) -> bool {
    let accepted = with_file("state.json", bytes, |path| {
        checkpoint::read_state(path.parent().unwrap_or(path))?;
        Ok(true)
    });
    let text = String::from_utf8_lossy(bytes);
    let configs = [Config::from_toml(&text), Config::from_json(&text)];
    // What is accepted must be writable, and have the sizes that a model is built by.
    let usable = |config: &Config| config.to_toml().is_ok() && config.tokens() > 0;
    accepted | configs.iter().flatten().any(usable)
}

/// A shard, gzipped or not: what is found in it, its labels, and its members' bytes.
pub fn tar(bytes: &[u8]) -> bool {
    with_file("a.tar", bytes, |path| data::read_shard(path, MOST_GZIP))
}

/// The limit of what a gzipped shard may take; in earnest it is 2 GiB.
const MOST_GZIP: u64 = 64 << 20;

/// An archive of NumPy arrays, statistics among them.
pub fn npz(bytes: &[u8]) -> bool {
    with_file("a.npz", bytes, |path| {
        let mut npz = Npz::open(path)?;
        let mut accepted = true;
        for name in npz.names().iter().take(8) {
            accepted &= npz.describe(name).is_ok();
            let _ = npz.bytes(name, 1 << 20, 1 << 12, |_| Ok(()));
            let _ = npz.floats(name);
        }
        let _ = Statistics::read(path);
        Ok(accepted)
    })
}

/// A NumPy array in memory.
pub fn npy(bytes: &[u8]) -> bool {
    Npy::parse(bytes).is_ok_and(|array| array.codes().is_ok() | array.floats().is_ok())
}

/// What `torch.save` writes, in both of its formats.
pub fn pth(bytes: &[u8]) -> bool {
    with_file("a.pth", bytes, |path| {
        tensors::read_network(path)?;
        Ok(true)
    })
}

/// An encoded image. In training a panic of a decoder is an error of its file; here one of our own
/// decoders is a panic.
pub fn image(bytes: &[u8]) -> bool {
    data::decode_uncaught(bytes, "image", LIMITS).is_ok()
}

/// What an image may take, in earnest eight times as many bytes and seconds: a program under a
/// fuzzer's counters is five times as slow.
const LIMITS: data::Limits = data::Limits {
    bytes: 64 << 20,
    scans: 16,
};

/// The index of a data set, all but its checksum, which is added here; `VERSION` in it is this
/// program's.
pub fn index(bytes: &[u8]) -> bool {
    let text = b"VERSION";
    let at = bytes.windows(text.len()).position(|part| part == text);
    let mut file = bytes.to_vec();
    if let Some(at) = at {
        // Of another length: the head's says so.
        let own = env!("CARGO_PKG_VERSION").as_bytes();
        file.splice(at..at + text.len(), own.iter().copied());
        if let Some(length) = file.get_mut(8..16) {
            let head = u64::from_le_bytes(length.try_into().unwrap_or_default());
            let head = head.wrapping_sub(text.len() as u64);
            let head = head.wrapping_add(own.len() as u64);
            length.copy_from_slice(&head.to_le_bytes());
        }
    }
    let digest = Sha256::digest(&file);
    file.extend_from_slice(&digest);
    with_file("a.index", &file, data::read_index)
}

/// Frames from another process that says it trains with this one.
pub fn frame(bytes: &[u8]) -> bool {
    StepMetrics::from_bytes(bytes).is_some() | world::read_frames(bytes)
}

/// `read` of a file of these bytes, in memory where Linux has a folder for that.
fn with_file(name: &str, bytes: &[u8], read: impl FnOnce(&Path) -> Result<bool>) -> bool {
    let memory = Path::new("/dev/shm");
    let root = match memory.is_dir() {
        true => memory.to_path_buf(),
        false => std::env::temp_dir(),
    };
    let thread = format!("{:?}", std::thread::current().id());
    let number: String = thread.chars().filter(char::is_ascii_digit).collect();
    let folder: PathBuf = root.join(format!("rdpm-hostile-{}-{number}", std::process::id()));
    let path = folder.join(name);
    let written = fs::create_dir_all(&folder).and_then(|()| fs::write(&path, bytes));
    // Without the file nothing would be tested.
    written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let accepted = read(&path).unwrap_or(false);
    // A run of many writes the same one again; the last is left to whoever ends.
    let _ = fs::remove_file(&path);
    let _ = fs::remove_dir(&folder);
    accepted
}
