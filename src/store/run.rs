//! Run folders (docs/design.md, section 3): the paths in a run, the lock of the single process that
//! writes, the newest checkpoint.
//!
//! ```text
//! config.toml  metrics.jsonl  classes.json  tokenizer.safetensors (train-gen)  images/
//! starts.jsonl  tensorboard/ (if it was asked for)
//! checkpoints/step-00000200/{model,ema,optimizer}.safetensors, state.json    checkpoints/latest
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use serde::Deserialize;

use super::lock::{Busy, Lock};
use super::{atomic, digest};
use crate::config::Config;
use crate::error::{Context, Result, hinted, usage};
use crate::telemetry::{EventLog, MetricsLog};

/// Format of `state.json`.
pub const CHECKPOINT_FORMAT: &str = "rdpm-checkpoint/1";

/// The paths of a run; nothing is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFolder(PathBuf);

/// The part of `state.json` that every reader of a checkpoint needs.
#[derive(Debug, Clone, Deserialize)]
pub struct CheckpointInfo {
    pub format: String,
    /// `train-vae` or `train-gen`.
    pub stage: String,
    pub step: u64,
    pub finished: bool,
    pub seed: u64,
    /// Version of the rdpm that wrote it.
    pub version: String,
    /// SHA-256 of each file beside it.
    pub sha256: BTreeMap<String, String>,
    /// Hashes of the weights that the run reads but does not train, by what they are.
    pub frozen: BTreeMap<String, String>,
}

impl RunFolder {
    /// Errors: there is no such folder, or it is not a run.
    pub fn open(path: &Path) -> Result<Self> {
        let run = Self(path.to_path_buf());
        if run.config().is_file() {
            return Ok(run);
        }
        let problem = match fs::metadata(path) {
            Ok(m) if m.is_dir() => "holds no config.toml, so it is not a run folder".into(),
            Ok(_) => "is not a folder".into(),
            Err(e) => format!("cannot be read: {e}"),
        };
        Err(hinted(
            format!("{} {problem}", path.display()),
            "a run folder is what train-vae and train-gen write, by default under runs/",
        ))
    }

    /// The run and the checkpoint that `path` names: a run with its newest checkpoint, or a
    /// checkpoint itself.
    pub fn locate(path: &Path) -> Result<(Self, PathBuf)> {
        // A checkpoint's relative path, given from inside its run, does not name the run; nor does
        // the target of a link.
        let mut no_run = None;
        let plain = path.components().all(|part| part != Component::ParentDir);
        let named = plain.then(|| std::path::absolute(path).ok()).flatten();
        for whole in [named, fs::canonicalize(path).ok()].into_iter().flatten() {
            if is_checkpoint(&whole)
                && let Some(run) = whole.parent().and_then(Path::parent)
            {
                match Self::open(run) {
                    Ok(run) => return Ok((run, whole)),
                    Err(error) => no_run = Some(error),
                }
            }
        }
        if let Some(error) = no_run {
            return Err(error);
        }
        let run = Self::open(path)?;
        let latest = run.latest()?;
        Ok((run, latest))
    }

    /// A run that another process has made: this one may not see its files yet.
    pub fn of_another(path: PathBuf) -> Self {
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn config(&self) -> PathBuf {
        self.0.join("config.toml")
    }

    pub fn metrics(&self) -> PathBuf {
        self.0.join("metrics.jsonl")
    }

    pub fn images(&self) -> PathBuf {
        self.0.join("images")
    }

    pub fn checkpoints(&self) -> PathBuf {
        self.0.join("checkpoints")
    }

    /// A line for each start of a process on this run.
    pub fn starts(&self) -> PathBuf {
        self.0.join("starts.jsonl")
    }

    /// Event files, if they were asked for.
    pub fn tensorboard(&self) -> PathBuf {
        self.0.join("tensorboard")
    }

    /// A list of {index, wnid, words}.
    pub fn classes(&self) -> PathBuf {
        self.0.join("classes.json")
    }

    /// train-gen's frozen tokenizer.
    pub fn tokenizer(&self) -> PathBuf {
        self.0.join("tokenizer.safetensors")
    }

    /// The newest intact checkpoint: the one that `latest` names or, if a crash came in between,
    /// the last one by step.
    pub fn latest(&self) -> Result<PathBuf> {
        let folder = self.checkpoints();
        let named = fs::read_to_string(folder.join("latest"))
            .ok()
            .map(|name| folder.join(name.trim()));
        if let Some(path) = named.filter(|p| p.join("state.json").is_file()) {
            return Ok(path);
        }
        let mut steps: Vec<PathBuf> = fs::read_dir(&folder)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|p| is_checkpoint(p))
            .collect();
        steps.sort();
        steps.pop().ok_or_else(|| {
            hinted(
                format!("{} holds no checkpoint yet", self.0.display()),
                "a run writes its first one before its first step",
            )
        })
    }

    /// Makes the missing folders.
    fn make(&self) -> Result<()> {
        fs::create_dir_all(self.checkpoints())
            .and_then(|()| fs::create_dir_all(self.images()))
            .map_err(|e| atomic::cannot_write(&self.0, &e))
    }

    /// Stage and step of the newest checkpoint.
    pub fn info(&self) -> Result<CheckpointInfo> {
        CheckpointInfo::read(&self.latest()?)
    }
}

/// Whether `path` is a checkpoint folder: `step-<number>` with a state.
pub fn is_checkpoint(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.strip_prefix("step-")
        .is_some_and(|n| n.parse::<u64>().is_ok())
        && path.join("state.json").is_file()
}

impl CheckpointInfo {
    /// Errors: the state is missing, damaged, or of another format.
    pub fn read(checkpoint: &Path) -> Result<Self> {
        let path = checkpoint.join("state.json");
        let text = fs::read_to_string(&path)
            .with_context(|| format!("damaged checkpoint: cannot read {}", path.display()))?;
        let info: Self = serde_json::from_str(&text)
            .with_context(|| format!("damaged checkpoint: {}", path.display()))?;
        if info.format != CHECKPOINT_FORMAT {
            return Err(hinted(
                format!(
                    "{}: expected format {CHECKPOINT_FORMAT}, found {}",
                    path.display(),
                    info.format
                ),
                "another version of rdpm wrote it",
            ));
        }
        Ok(info)
    }

    /// The file `name` of `checkpoint`, after checking that its bytes are those that were saved.
    pub fn file(&self, checkpoint: &Path, name: &str) -> Result<PathBuf> {
        let file = checkpoint.join(name);
        let expected = self.sha256.get(name).map_or("none", String::as_str);
        let found = digest::sha256(&file).context("damaged checkpoint")?;
        if found != expected {
            return Err(anyhow::anyhow!(
                "damaged checkpoint: {} has SHA-256 {found}, expected {expected}",
                file.display()
            ));
        }
        Ok(file)
    }
}

/// A run that this process writes; no other process can while this value lives.
#[derive(Debug)]
pub struct Run {
    folder: RunFolder,
    pub metrics: MetricsLog,
    /// TensorBoard's, if it was asked for.
    pub events: Option<EventLog>,
    _lock: Lock,
}

impl Run {
    /// A new run of `stage` at `out` (default `runs/<stage>-<time>`), with its resolved
    /// configuration.
    ///
    /// Errors: the folder already holds a run. A run without a checkpoint, stopped as it began,
    /// starts from scratch.
    pub fn create(out: Option<&Path>, stage: &str, config: &Config) -> Result<Self> {
        let path = out.map_or_else(|| default_path(stage), Path::to_path_buf);
        let folder = RunFolder(path.clone());
        folder.make()?;
        let lock = lock(&path, "--out")?;
        if folder.latest().is_ok() {
            return Err(usage(
                format!("{} holds a run already", path.display()),
                format!(
                    "continue it with --resume {}, or choose another --out",
                    path.display()
                ),
            ));
        }
        let metrics = MetricsLog::open(&folder.metrics(), None)?;
        // Written last, because it marks the folder as a run.
        atomic::write_file(&folder.config(), config.to_toml()?.as_bytes())?;
        Ok(Self {
            folder,
            metrics,
            events: None,
            _lock: lock,
        })
    }

    /// Writes TensorBoard's event files from now on, for the steps after `step`.
    pub fn write_events(&mut self, step: u64, config: &Config) -> Result<()> {
        let folder = self.folder.tensorboard();
        self.events = Some(EventLog::create(&folder, step + 1, &config.to_toml()?)?);
        Ok(())
    }

    /// Locks an existing run for this process without changing anything in it yet.
    pub fn lock(path: &Path) -> Result<Locked> {
        Ok(Locked {
            folder: RunFolder::open(path)?,
            lock: lock(path, "--out")?,
        })
    }

    pub fn folder(&self) -> &RunFolder {
        &self.folder
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn images(&self) -> PathBuf {
        self.folder.images()
    }

    pub fn checkpoints(&self) -> PathBuf {
        self.folder.checkpoints()
    }
}

/// An existing run that only this process may write to, still unchanged.
#[derive(Debug)]
pub struct Locked {
    folder: RunFolder,
    lock: Lock,
}

impl Locked {
    /// Continues the run after `step` with `config`; lines of later steps are removed from the
    /// metrics.
    pub fn resume(self, step: u64, config: &Config) -> Result<Run> {
        let Locked { folder, lock } = self;
        folder.make()?;
        atomic::sweep(folder.path())?;
        atomic::sweep(&folder.checkpoints())?;
        let metrics = MetricsLog::open(&folder.metrics(), Some(step))?;
        atomic::write_file(&folder.config(), config.to_toml()?.as_bytes())?;
        Ok(Run {
            folder,
            metrics,
            events: None,
            _lock: lock,
        })
    }
}

/// Locks the folder for this process. `option` names the option for choosing another folder.
pub fn lock(path: &Path, option: &str) -> Result<Lock> {
    let name = path.join(".lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&name)
        .map_err(|e| atomic::cannot_write(&name, &e))?;
    Lock::acquire(file, &name).map_err(|error| match Busy::of(&error) {
        Some(by) => hinted(
            format!("{by} is writing to {}", path.display()),
            by.remedy()
                .unwrap_or_else(|| format!("wait for it, stop it, or choose another {option}")),
        ),
        None => hinted(format!("cannot lock {}: {error}", name.display()), ""),
    })
}

/// `runs/<stage>-<time>`, UTC.
fn default_path(stage: &str) -> PathBuf {
    let now = timestamp(unix_seconds(SystemTime::now()) as u64);
    PathBuf::from("runs").join(format!("{stage}-{now}"))
}

/// Since 1970, with fractions; 0 before it.
pub fn unix_seconds(time: SystemTime) -> f64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

/// As 2026-11-30 21:45 UTC.
pub fn date(time: SystemTime) -> String {
    let text = timestamp(unix_seconds(time) as u64);
    let (year, rest) = text.split_at(text.len() - 11);
    let part = |from: usize| &rest[from..from + 2];
    format!("{year}-{}-{} {}:{} UTC", part(0), part(2), part(5), part(7))
}

/// Seconds since 1970 as YYYYMMDD-HHMMSS (the date as in Howard Hinnant's `civil_from_days`).
fn timestamp(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (h, m, s) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year:04}{month:02}{day:02}-{h:02}{m:02}{s:02}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::report;

    #[test]
    fn the_second_process_on_one_run_is_refused() -> Result<()> {
        let root = tempfile::tempdir()?;
        let path = root.path().join("run");
        let first = Run::create(Some(&path), "train-vae", &Config::default())?;
        let (text, code) = report(&Run::lock(&path).unwrap_err());
        assert!(text.contains("another process is writing to"), "{text}");
        assert_eq!(code, 1);
        drop(first);
        Run::lock(&path)?;
        Ok(())
    }

    #[test]
    fn a_run_with_a_checkpoint_is_not_started_twice() -> Result<()> {
        let root = tempfile::tempdir()?;
        let path = root.path().join("run");
        let config = Config::load(Some("smoke"), &[])?;
        let run = Run::create(Some(&path), "train-vae", &config)?;
        let checkpoint = run.checkpoints().join("step-00000000");
        drop(run);
        drop(Run::create(Some(&path), "train-vae", &config)?);
        fs::create_dir(&checkpoint)?;
        fs::write(checkpoint.join("state.json"), "{}")?;
        let (text, code) = report(&Run::create(Some(&path), "train-vae", &config).unwrap_err());
        assert!(text.contains("--resume"), "{text}");
        assert_eq!(code, 2);
        assert_eq!(Config::read(&path.join("config.toml"))?, config);
        Ok(())
    }

    #[test]
    fn a_checkpoint_behind_a_link_belongs_to_the_run_that_names_it() -> Result<()> {
        let root = tempfile::tempdir()?;
        let path = root.path().join("run");
        let run = Run::create(Some(&path), "train-gen", &Config::default())?;
        let (elsewhere, link) = (
            root.path().join("step-00000005"),
            run.checkpoints().join("step-00000005"),
        );
        fs::create_dir(&elsewhere)?;
        fs::write(elsewhere.join("state.json"), "{}")?;
        std::os::unix::fs::symlink(&elsewhere, &link)?;
        let (found, checkpoint) = RunFolder::locate(&link)?;
        assert_eq!((found.path(), checkpoint), (&*path, link));
        assert!(RunFolder::locate(&elsewhere).is_err());
        Ok(())
    }

    #[test]
    fn latest_survives_a_lost_pointer() -> Result<()> {
        let root = tempfile::tempdir()?;
        let path = root.path().join("run");
        let run = Run::create(Some(&path), "train-gen", &Config::default())?;
        assert!(run.folder().latest().is_err());
        for step in [5, 10] {
            let folder = run.checkpoints().join(format!("step-{step:08}"));
            fs::create_dir(&folder)?;
            let state = format!(
                r#"{{"format":"{CHECKPOINT_FORMAT}","stage":"train-gen","step":{step},"finished":false,"seed":1,"version":"0.1.0","sha256":{{}},"frozen":{{}}}}"#
            );
            fs::write(folder.join("state.json"), state)?;
        }
        assert_eq!(run.folder().info()?.step, 10);
        fs::write(run.checkpoints().join("latest"), "step-00000005\n")?;
        assert_eq!(run.folder().info()?.step, 5);
        fs::write(run.checkpoints().join("latest"), "step-00000099\n")?;
        assert_eq!(run.folder().info()?.step, 10);
        Ok(())
    }

    #[test]
    fn times_are_dates() {
        assert_eq!(timestamp(0), "19700101-000000");
        assert_eq!(timestamp(951_868_799), "20000229-235959");
        assert_eq!(timestamp(1_795_564_800), "20261125-000000");
    }
}
