//! Checkpoints (docs/design.md, section 3): `checkpoints/step-00000200/` holds the tensors of the
//! model, the moving average and the optimizer, and `state.json`; `checkpoints/latest` names the
//! newest.
//!
//! A folder appears completely or not at all, and `latest` is replaced afterwards. Whatever happens
//! to the process, `latest` names a checkpoint that can be loaded.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Hinted, Result, hinted};
use crate::store::run::{CHECKPOINT_FORMAT, CheckpointInfo};
use crate::store::{atomic, digest, safetensors};

const STATE: &str = "state.json";
const LATEST: &str = "latest";
const FILES: [&str; 3] = [
    "model.safetensors",
    "ema.safetensors",
    "optimizer.safetensors",
];

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// The state of a run; with the tensors, everything that it needs to continue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub format: String,
    /// `train-vae` or `train-gen`.
    pub stage: String,
    /// Version of the program that wrote it.
    pub version: String,
    pub seed: u64,
    /// Steps completed.
    pub step: u64,
    /// The run is finished.
    pub finished: bool,
    pub epoch: u64,
    /// Examples seen in the current epoch.
    pub position: u64,
    /// The number of the next example: the index of every random stream.
    pub index: u64,
    /// Number of images in the data set, and its fingerprint.
    pub images: u64,
    pub data: String,
    /// The latent cache that train-gen reads.
    pub cache: Option<PathBuf>,
    /// Hashes of the weights that the run reads but does not train, by what they are.
    pub frozen: BTreeMap<String, String>,
    /// Consecutive skipped steps.
    pub bad_steps: u64,
    /// The stage's own counters.
    pub counters: BTreeMap<String, u64>,
    /// SHA-256 of each file beside this one.
    pub sha256: BTreeMap<String, String>,
}

impl State {
    /// The state at the start of a run, in this program's format and version.
    pub fn new(stage: &str, seed: u64, images: u64, data: String) -> Self {
        Self {
            format: CHECKPOINT_FORMAT.to_string(),
            stage: stage.to_string(),
            version: env!("CARGO_PKG_VERSION").to_string(),
            seed,
            step: 0,
            finished: false,
            epoch: 0,
            position: 0,
            index: 0,
            images,
            data,
            cache: None,
            frozen: BTreeMap::new(),
            bad_steps: 0,
            counters: BTreeMap::new(),
            sha256: BTreeMap::new(),
        }
    }
}

/// A checkpoint's tensors.
#[derive(Debug, Clone, Default)]
pub struct Contents {
    pub model: Tensors,
    pub ema: Tensors,
    /// Moments and all other tensors that are no weights of the model.
    pub optimizer: Tensors,
}

/// The stage's own counter `name` of a checkpoint. Errors: it is missing; starting from 0 would be
/// silently wrong.
pub fn counter(counters: &BTreeMap<String, u64>, name: &str) -> Result<u64> {
    let found = counters.get(name).copied();
    found.with_context(|| format!("damaged checkpoint: {STATE} holds no counter \"{name}\""))
}

/// The checkpoint folder of `step`.
pub fn folder(checkpoints: &Path, step: u64) -> PathBuf {
    checkpoints.join(format!("step-{step:08}"))
}

/// Writes a checkpoint, makes it the latest, and removes all but the newest `keep`; one that cannot
/// be removed stays, with a warning.
pub fn save(
    checkpoints: &Path,
    state: &State,
    contents: &Contents,
    keep: usize,
) -> Result<PathBuf> {
    let path = folder(checkpoints, state.step);
    let mut state = state.clone();
    atomic::write_folder(&path, |temporary| {
        let parts = [&contents.model, &contents.ema, &contents.optimizer];
        for (name, tensors) in FILES.into_iter().zip(parts) {
            let file = temporary.join(name);
            safetensors::write(&file, tensors, &safetensors::Metadata::new())?;
            state
                .sha256
                .insert(name.to_string(), digest::sha256(&file)?);
        }
        let json = serde_json::to_string_pretty(&state)?;
        atomic::write_file(&temporary.join(STATE), json.as_bytes())
    })?;
    set_latest(checkpoints, state.step)?;
    remove_old(checkpoints, state.step, keep);
    Ok(path)
}

/// Makes the checkpoint of `step` the latest.
pub fn set_latest(checkpoints: &Path, step: u64) -> Result<()> {
    let name = format!("step-{step:08}\n");
    atomic::write_file(&checkpoints.join(LATEST), name.as_bytes())
}

/// Reads a checkpoint; its tensors are on the CPU.
///
/// Errors: a file is missing, damaged (its SHA-256 differs from the recorded one) or of an unknown
/// format. The hint names the newest older checkpoint that is intact.
pub fn load(path: &Path) -> Result<(State, Contents)> {
    let state = verify(path).map_err(|error| with_remedy(path, error))?;
    let read = |name: &str| safetensors::Reader::open(&path.join(name))?.tensors();
    let contents = Contents {
        model: read(FILES[0])?,
        ema: read(FILES[1])?,
        optimizer: read(FILES[2])?,
    };
    Ok((state, contents))
}

/// The state of the checkpoint at `path`, without its tensors. Errors: as for [`load`].
pub fn read_state(path: &Path) -> Result<State> {
    state(path).map_err(|error| with_remedy(path, error))
}

/// Adds a hint to `error`, about the checkpoint at `path`: the newest older one that is intact.
fn with_remedy(path: &Path, error: Error) -> Error {
    if error.is::<Hinted>() {
        // Not damaged, but of another format.
        return error;
    }
    let hint = match previous_usable(path) {
        Some(previous) => format!(
            "an older checkpoint is intact: --resume {}, or --or-older",
            previous.display()
        ),
        None => "no older checkpoint is intact".to_string(),
    };
    hinted(format!("{error:#}"), hint)
}

fn state(path: &Path) -> Result<State> {
    CheckpointInfo::read(path)?;
    let file = path.join(STATE);
    let text = fs::read_to_string(&file)?;
    serde_json::from_str(&text).with_context(|| {
        format!(
            "damaged checkpoint: {} is not a valid state",
            file.display()
        )
    })
}

fn verify(path: &Path) -> Result<State> {
    let info = CheckpointInfo::read(path)?;
    for name in FILES {
        info.file(path, name)?;
    }
    state(path)
}

/// The checkpoint at `path` or, if it is damaged, the newest older one that is intact, with a
/// warning.
pub fn newest_usable(path: &Path) -> PathBuf {
    let Err(error) = verify(path) else {
        return path.to_path_buf();
    };
    match previous_usable(path) {
        // Another format: loading it reports that.
        _ if error.is::<Hinted>() => path.to_path_buf(),
        None => path.to_path_buf(),
        Some(previous) => {
            tracing::warn!("{error:#}; continuing from {}", previous.display());
            previous
        }
    }
}

fn previous_usable(path: &Path) -> Option<PathBuf> {
    let (checkpoints, step) = (path.parent()?, step_of(path)?);
    let mut older = steps(checkpoints).ok()?;
    older.retain(|&s| s < step);
    older
        .into_iter()
        .rev()
        .map(|s| folder(checkpoints, s))
        .find(|p| verify(p).is_ok())
}

/// Steps of all checkpoints, ascending.
pub fn steps(checkpoints: &Path) -> Result<Vec<u64>> {
    let entries = fs::read_dir(checkpoints)
        .with_context(|| format!("cannot list {}", checkpoints.display()))?;
    let mut steps: Vec<u64> = entries
        .filter_map(|entry| step_of(&entry.ok()?.path()))
        .collect();
    steps.sort_unstable();
    Ok(steps)
}

fn step_of(path: &Path) -> Option<u64> {
    path.file_name()?
        .to_str()?
        .strip_prefix("step-")?
        .parse()
        .ok()
}

/// Steps above `newest` belong to a continuation that was abandoned by resuming from an older
/// checkpoint.
fn remove_old(checkpoints: &Path, newest: u64, keep: usize) {
    let steps = match steps(checkpoints) {
        Ok(steps) => steps,
        Err(error) => return tracing::warn!("old checkpoints stay: {error:#}"),
    };
    let (kept, given_up): (Vec<u64>, Vec<u64>) = steps.into_iter().partition(|&s| s <= newest);
    let surplus = kept.len().saturating_sub(keep.max(1));
    for step in kept[..surplus].iter().chain(&given_up) {
        let path = folder(checkpoints, *step);
        if let Err(error) = remove(&path) {
            tracing::warn!(
                "cannot remove {}: {error}; the run continues",
                path.display()
            );
        }
    }
}

/// The state is deleted first, so that a partly deleted folder is not taken for a checkpoint.
fn remove(checkpoint: &Path) -> std::io::Result<()> {
    match fs::remove_file(checkpoint.join(STATE)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => fs::remove_dir_all(checkpoint),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn contents(value: f32) -> Result<Contents> {
        let one = |name: &str| -> Result<Tensors> {
            let tensor = Tensor::full(value, (2, 3), &Device::Cpu)?;
            Ok(BTreeMap::from([(name.to_string(), tensor)]))
        };
        Ok(Contents {
            model: one("w")?,
            ema: one("w")?,
            optimizer: one("exp_avg.w")?,
        })
    }

    fn save_steps(root: &Path, steps: &[u64], keep: usize) -> Result<()> {
        for &step in steps {
            let state = State {
                step,
                ..State::new("train-gen", 7, 100, String::new())
            };
            save(root, &state, &contents(step as f32)?, keep)?;
        }
        Ok(())
    }

    #[test]
    fn what_is_saved_is_loaded_and_old_ones_go() -> Result<()> {
        let root = tempfile::tempdir()?;
        save_steps(root.path(), &[0, 5, 10, 15], 2)?;
        assert_eq!(steps(root.path())?, [10, 15]);
        let (state, read) = load(&folder(root.path(), 15))?;
        assert_eq!((state.step, state.seed), (15, 7));
        assert_eq!(read.model["w"].to_vec2::<f32>()?, vec![vec![15.0; 3]; 2]);
        assert_eq!(read.optimizer.len(), 1);
        Ok(())
    }

    #[test]
    fn an_old_checkpoint_that_cannot_be_removed_costs_no_new_one() -> Result<()> {
        let root = tempfile::tempdir()?;
        save_steps(root.path(), &[5], 1)?;
        // Cannot be removed: a folder is in the place of a file.
        let state = folder(root.path(), 5).join(STATE);
        fs::remove_file(&state)?;
        fs::create_dir(&state)?;
        save_steps(root.path(), &[10, 15], 1)?;
        assert_eq!(steps(root.path())?, [5, 15]);
        assert_eq!(load(&folder(root.path(), 15))?.0.step, 15);
        Ok(())
    }

    #[test]
    fn the_newest_usable_checkpoint_is_the_last_that_is_whole() -> Result<()> {
        let root = tempfile::tempdir()?;
        save_steps(root.path(), &[5, 10, 15], 3)?;
        let at = |step| folder(root.path(), step);
        assert_eq!(newest_usable(&at(15)), at(15));
        for step in [15, 10] {
            fs::write(at(step).join(FILES[0]), "damaged")?;
        }
        assert_eq!(newest_usable(&at(15)), at(5));
        fs::write(at(5).join(FILES[0]), "damaged")?;
        assert_eq!(newest_usable(&at(15)), at(15));
        Ok(())
    }

    #[test]
    fn a_damaged_checkpoint_is_refused_and_the_previous_one_named() -> Result<()> {
        let root = tempfile::tempdir()?;
        save_steps(root.path(), &[5, 10], 2)?;
        let file = folder(root.path(), 10).join("ema.safetensors");
        let mut bytes = fs::read(&file)?;
        *bytes.last_mut().expect("not empty") ^= 1;
        fs::write(&file, bytes)?;
        let error = load(&folder(root.path(), 10)).unwrap_err();
        let (text, code) = crate::error::report(&error);
        assert!(text.contains("ema.safetensors"), "{text}");
        assert!(text.contains("step-00000005"), "{text}");
        assert_eq!(code, 1);
        Ok(())
    }

    #[test]
    fn a_damaged_state_is_refused_and_the_previous_one_named() -> Result<()> {
        let root = tempfile::tempdir()?;
        save_steps(root.path(), &[5, 10], 2)?;
        fs::write(folder(root.path(), 10).join(STATE), "{")?;
        for error in [
            read_state(&folder(root.path(), 10)).unwrap_err(),
            load(&folder(root.path(), 10)).unwrap_err(),
        ] {
            let (text, _) = crate::error::report(&error);
            assert!(text.contains("state.json"), "{text}");
            assert!(
                text.contains("hint: an older checkpoint is intact"),
                "{text}"
            );
        }
        Ok(())
    }

    #[test]
    fn a_resumed_older_step_gives_up_the_later_ones() -> Result<()> {
        let root = tempfile::tempdir()?;
        save_steps(root.path(), &[5, 10, 15], 3)?;
        save_steps(root.path(), &[10], 3)?;
        assert_eq!(steps(root.path())?, [5, 10]);
        assert_eq!(
            fs::read_to_string(root.path().join(LATEST))?,
            "step-00000010\n"
        );
        Ok(())
    }

    #[test]
    fn an_unknown_format_is_refused_by_name() -> Result<()> {
        let root = tempfile::tempdir()?;
        save_steps(root.path(), &[5], 1)?;
        let file = folder(root.path(), 5).join(STATE);
        fs::write(
            &file,
            fs::read_to_string(&file)?.replace("checkpoint/1", "checkpoint/9"),
        )?;
        let (text, _) = crate::error::report(&load(&folder(root.path(), 5)).unwrap_err());
        assert!(
            text.contains("rdpm-checkpoint/9") && text.contains("hint: another version of rdpm"),
            "{text}"
        );
        Ok(())
    }
}
