//! Stores features of samples on disk as they are computed, so that an interrupted evaluation can
//! continue, and another evaluation of the same samples can reuse them.
//!
//! A folder with `identity.json` (which samples these are) and one file of f32 rows per tap, named
//! after the network, its weights and the preprocessing. Rows are appended a batch at a time; after
//! an interruption, complete rows are kept.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::features::{FeatureNetwork, Rows};
use crate::error::{Context, Result, hinted};
use crate::store::lock::Lock;
use crate::store::run::lock;
use crate::store::{atomic, digest};

pub struct FeatureLog {
    folder: PathBuf,
    taps: Vec<Known>,
    _lock: Lock,
}

/// The known features of a tap.
struct Known {
    file: File,
    width: usize,
    count: usize,
}

impl FeatureLog {
    /// Opens or creates the log of the samples `identity` in `folder`, for the taps of `networks`.
    ///
    /// Errors: the folder is the log of other samples; another process writes to it.
    pub fn open(
        folder: &Path,
        identity: &Value,
        networks: &[Box<dyn FeatureNetwork>],
    ) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| unusable(folder))?;
        let lock = lock(folder, "--work")?;
        claim(folder, identity)?;
        let mut taps = Vec::new();
        for network in networks {
            for tap in network.taps() {
                let path = folder.join(file_name(&**network, tap.name));
                taps.push(
                    Known::open(&path, tap.width)
                        .with_context(|| format!("cannot open {}", path.display()))?,
                );
            }
        }
        Ok(Self {
            folder: folder.to_path_buf(),
            taps,
            _lock: lock,
        })
    }

    /// The number of samples whose features are known for every tap.
    pub fn count(&self) -> usize {
        self.taps.iter().map(|tap| tap.count).min().unwrap_or(0)
    }

    /// Adds the samples that follow [`FeatureLog::count`]: one matrix per tap.
    pub fn append(&mut self, features: &[Rows]) -> Result<()> {
        let first = self.count();
        for (tap, rows) in self.taps.iter_mut().zip(features) {
            // Another evaluation, or this one before it was killed, may already have more rows of
            // this tap.
            let known = (tap.count - first).min(rows.count());
            let values = &rows.values[known * rows.width..];
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            tap.file
                .write_all(&bytes)
                .with_context(|| format!("cannot write to {}", self.folder.display()))?;
            tap.count += rows.count() - known;
        }
        Ok(())
    }

    /// Passes the known features of the first `limit` samples to `take`, `batch` at a time, one
    /// matrix per tap.
    pub fn replay(
        &mut self,
        limit: usize,
        batch: usize,
        mut take: impl FnMut(&[Rows]) -> Result<()>,
    ) -> Result<()> {
        let all = self.count().min(limit);
        for start in (0..all).step_by(batch) {
            take(&self.rows(start, batch.min(all - start))?)?;
        }
        Ok(())
    }

    /// The features of the `count` samples from `first` on, one matrix per tap.
    ///
    /// Errors: they are not known.
    pub fn rows(&self, first: usize, count: usize) -> Result<Vec<Rows>> {
        let of_tap = |tap: &Known| {
            let mut bytes = vec![0; count * tap.width * 4];
            let at = (first * tap.width * 4) as u64;
            tap.file
                .read_exact_at(&mut bytes, at)
                .with_context(|| format!("cannot read {}", self.folder.display()))?;
            let (values, _) = bytes.as_chunks::<4>();
            Ok(Rows {
                width: tap.width,
                values: values.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            })
        };
        self.taps.iter().map(of_tap).collect()
    }
}

/// Makes the folder one for features of the samples `identity`, or finds that it is.
///
/// Errors: it is the folder of other samples.
pub fn claim(folder: &Path, identity: &Value) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| unusable(folder))?;
    let path = folder.join("identity.json");
    let text = serde_json::to_string_pretty(identity)?;
    let read = || fs::read_to_string(&path);
    let mut found = read();
    // Features without an identity may belong to any samples.
    if matches!(&found, Err(e) if e.kind() == ErrorKind::NotFound)
        && !has_features(folder).with_context(|| unusable(folder))?
    {
        let written = atomic::write_file(&path, text.as_bytes());
        found = read();
        // Another part of the same job may have been quicker.
        if found.is_err() {
            written?;
        }
    }
    if found.as_ref().is_ok_and(|found| *found == text) {
        return Ok(());
    }
    let found = found.ok().and_then(|text| serde_json::from_str(&text).ok());
    let found: Value = found.unwrap_or_default();
    let keys = identity.as_object().into_iter().flatten();
    let mut differing = keys.filter(|(key, expected)| found[key.as_str()] != **expected);
    let what = match differing.next().filter(|_| found.is_object()) {
        Some((key, expected)) => format!(": their {key} is {}, expected {expected}", found[key]),
        None => String::new(),
    };
    Err(hinted(
        format!("{}: features of other samples{what}", folder.display()),
        "choose another folder with --work, or remove it",
    ))
}

fn unusable(folder: &Path) -> String {
    format!("cannot use the folder {}", folder.display())
}

impl Known {
    /// Opens a tap's file, and cuts off an incomplete last row that a killed process left.
    fn open(path: &Path, width: usize) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)?;
        let count = file.metadata()?.len() as usize / (4 * width);
        file.set_len((count * 4 * width) as u64)?;
        Ok(Self { file, width, count })
    }
}

fn has_features(folder: &Path) -> io::Result<bool> {
    for file in fs::read_dir(folder)? {
        if file?.path().extension().is_some_and(|e| e == "f32") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Features from different networks, weights or preprocessing get different files.
fn file_name(network: &dyn FeatureNetwork, tap: &str) -> String {
    let made_by = json!([
        network.name(),
        network.weights_hash(),
        network.preprocess(),
        tap
    ]);
    let hash = digest::of_bytes(made_by.to_string().as_bytes());
    format!("{tap}-{}.f32", &hash[..12])
}

#[cfg(test)]
mod tests {
    use image::RgbImage;
    use serde_json::json;

    use super::*;
    use crate::error::report;
    use crate::metrics::Tap;

    /// A network whose weights have this hash.
    struct Network(&'static str, Vec<Tap>);

    impl FeatureNetwork for Network {
        fn name(&self) -> &'static str {
            "network"
        }

        fn weights_hash(&self) -> &str {
            self.0
        }

        fn preprocess(&self) -> &'static str {
            "adm"
        }

        fn taps(&self) -> &[Tap] {
            &self.1
        }

        fn features(&self, _: &[RgbImage]) -> Result<Vec<Rows>> {
            Ok(Vec::new())
        }
    }

    fn networks(
        weights: &'static str,
        taps: &[(&'static str, usize)],
    ) -> Vec<Box<dyn FeatureNetwork>> {
        let taps = taps.iter().map(|&(name, width)| Tap { name, width });
        vec![Box::new(Network(weights, taps.collect()))]
    }

    fn rows(width: usize, first: usize, count: usize) -> Rows {
        let values = first * width..(first + count) * width;
        Rows {
            width,
            values: values.map(|x| x as f32).collect(),
        }
    }

    fn batch(first: usize, count: usize) -> Vec<Rows> {
        vec![rows(2, first, count), rows(3, first, count)]
    }

    const BOTH: [(&str, usize); 2] = [("a", 2), ("b", 3)];

    #[test]
    fn what_is_whole_in_every_file_is_known_after_an_interruption() -> Result<()> {
        let root = tempfile::tempdir()?;
        let folder = root.path().join("work");
        let (identity, networks) = (json!({"seed": 1}), networks("w", &BOTH));
        let mut log = FeatureLog::open(&folder, &identity, &networks)?;
        log.append(&batch(0, 4))?;
        log.append(&batch(4, 4))?;
        drop(log);
        // As if killed while the second file was written.
        let second = OpenOptions::new()
            .write(true)
            .open(folder.join(file_name(&*networks[0], "b")))?;
        second.set_len(6 * 12 + 5)?;
        let mut log = FeatureLog::open(&folder, &identity, &networks)?;
        assert_eq!(log.count(), 6);
        log.append(&batch(6, 4))?;
        let mut seen = 0;
        log.replay(9, 2, |features| {
            let count = features[0].count();
            assert_eq!(features, batch(seen, count));
            seen += count;
            Ok(())
        })?;
        assert_eq!((log.count(), seen), (10, 9));
        Ok(())
    }

    #[test]
    fn another_evaluation_of_the_samples_takes_what_is_known() -> Result<()> {
        let root = tempfile::tempdir()?;
        let identity = json!({"seed": 1});
        let open = |weights, taps: &[(&'static str, usize)]| {
            FeatureLog::open(root.path(), &identity, &networks(weights, taps))
        };
        open("w", &BOTH[..1])?.append(&[rows(2, 0, 6)])?;
        assert_eq!(open("w", &BOTH[..1])?.count(), 6);
        // Other weights, other features.
        assert_eq!(open("v", &BOTH[..1])?.count(), 0);
        let mut both = open("w", &BOTH)?;
        assert_eq!(both.count(), 0);
        both.append(&batch(0, 4))?;
        both.append(&batch(4, 4))?;
        both.replay(usize::MAX, 8, |features| {
            assert_eq!(features, batch(0, 8));
            Ok(())
        })?;
        drop(both);
        assert_eq!(open("w", &BOTH[..1])?.count(), 8);
        Ok(())
    }

    #[test]
    fn features_without_a_readable_identity_are_refused() -> Result<()> {
        let root = tempfile::tempdir()?;
        let open = || FeatureLog::open(root.path(), &json!({"seed": 1}), &networks("w", &BOTH));
        drop(open()?);
        let identity = root.path().join("identity.json");
        let refused = || {
            let error = open().err();
            error.is_some_and(|e| report(&e).0.contains("of other samples"))
        };
        fs::write(&identity, [0xff])?;
        assert!(refused());
        fs::remove_file(&identity)?;
        assert!(refused() && !identity.exists());
        Ok(())
    }

    #[test]
    fn other_samples_and_a_second_process_are_refused() -> Result<()> {
        let root = tempfile::tempdir()?;
        let open = |seed| {
            let log = FeatureLog::open(root.path(), &json!({"seed": seed}), &networks("w", &BOTH));
            log.err().map(|e| report(&e).0)
        };
        assert_eq!(open(1), None);
        let why = |seed| open(seed).unwrap_or_default();
        assert!(why(2).contains("of other samples") && why(2).contains("--work"));
        let _first = FeatureLog::open(root.path(), &json!({"seed": 1}), &networks("w", &BOTH))?;
        let text = why(1);
        assert!(
            text.contains("another process is writing to") && text.contains("--work"),
            "{text}"
        );
        Ok(())
    }
}
