//! Finding and loading a model: a run folder, one of its checkpoints, or a bundle.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::builtin;
use super::bundle::{Bundle, Tensors};
use super::hub::{self, Hub};
use super::run::{CheckpointInfo, RunFolder};
use super::safetensors::Reader;
use crate::config::Config;
use crate::error::{self, Context, Hinted, Result, hinted, usage};
use crate::telemetry::MetricsLog;

/// The key of a generator's tokenizer in [`CheckpointInfo::frozen`].
pub const TOKENIZER: &str = "tokenizer";

/// Which of a checkpoint's weights to load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Weights {
    /// The moving average.
    #[default]
    Ema,
    /// The weights that the optimizer left.
    Raw,
}

impl Weights {
    fn file(self) -> &'static str {
        match self {
            Weights::Ema => "ema.safetensors",
            Weights::Raw => "model.safetensors",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Weights::Ema => "ema",
            Weights::Raw => "raw",
        }
    }
}

/// The model to use: `asked` (the value of --model), else `$RDPM_MODEL`, else the newest finished
/// train-gen run under `runs/`, else the built-in model. What was not asked for is logged, and what
/// was passed over for the built-in model.
pub fn locate(asked: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = asked {
        return Ok(path.to_path_buf());
    }
    if let Some(path) = std::env::var_os("RDPM_MODEL").filter(|p| !p.is_empty()) {
        tracing::info!("model: {} ($RDPM_MODEL)", Path::new(&path).display());
        return Ok(path.into());
    }
    if let Some(path) = newest_finished(Path::new("runs")) {
        tracing::info!("model: {} (the newest finished run)", path.display());
        return Ok(path);
    }
    match builtin::bytes() {
        Ok(_) => {
            tracing::info!("model: the built-in one (`rdpm inspect` describes it)");
            // Where somebody has trained, another model than theirs is not taken without a word.
            let unfinished = unfinished(Path::new("runs"));
            for (path, why) in unfinished.iter().take(NAMED) {
                let path = path.display();
                match *why {
                    NO_RUN => tracing::info!("passed over: {path} {why}"),
                    _ => tracing::warn!("passed over: {path} {why}; --model {path} names it"),
                }
            }
            if unfinished.len() > NAMED {
                let more = unfinished.len() - NAMED;
                tracing::warn!("passed over: {more} more folders under runs/");
            }
            Ok(builtin::NAME.into())
        }
        Err(none) => Err(usage(
            format!("no model: there is no finished train-gen run under runs/, and {none}"),
            format!(
                "name one with --model RUN|BUNDLE or $RDPM_MODEL; `rdpm demo` trains a small one; {}",
                error::hint(&none).unwrap_or_default()
            ),
        )),
    }
}

/// How many folders without a model are named.
const NAMED: usize = 5;

const NO_RUN: &str = "is no run";
const NO_CHECKPOINT: &str = "has no checkpoint that can be read";

/// When the train-gen run at `path` was finished, or why it is no model.
fn finished(path: &Path) -> std::result::Result<SystemTime, &'static str> {
    let run = RunFolder::open(path).map_err(|_| NO_RUN)?;
    let latest = run.latest().map_err(|_| NO_CHECKPOINT)?;
    let info = CheckpointInfo::read(&latest).map_err(|_| NO_CHECKPOINT)?;
    let state = fs::metadata(latest.join("state.json"));
    let time = state.and_then(|state| state.modified());
    match (info.stage.as_str(), info.finished) {
        ("train-gen", true) => time.map_err(|_| NO_CHECKPOINT),
        ("train-gen", false) => Err("is not finished"),
        _ => Err("is a tokenizer without a generator"),
    }
}

/// The folders in `runs`, with what [`finished`] says of them.
fn folders(
    runs: &Path,
) -> impl Iterator<Item = (PathBuf, std::result::Result<SystemTime, &'static str>)> {
    let entries = fs::read_dir(runs).into_iter().flatten().flatten();
    let folders = entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir());
    folders.map(|path| {
        let state = finished(&path);
        (path, state)
    })
}

fn newest_finished(runs: &Path) -> Option<PathBuf> {
    let finished = folders(runs).filter_map(|(path, state)| Some((state.ok()?, path)));
    finished.max().map(|(_, path)| path)
}

/// The folders in `runs` that are no model, and why, in the order of their names.
fn unfinished(runs: &Path) -> Vec<(PathBuf, &'static str)> {
    let unfinished = folders(runs).filter_map(|(path, state)| Some((path, state.err()?)));
    let mut unfinished: Vec<_> = unfinished.collect();
    unfinished.sort();
    unfinished
}

/// Loads a bundle, the built-in model (`builtin`), a model of the hub (`hf://owner/repo`) or its
/// folder, or a run folder at its newest (or the named) checkpoint. A bundle has only one kind of
/// weights.
pub fn load(path: &Path, weights: Weights) -> Result<Bundle> {
    if path == Path::new(builtin::NAME) {
        return Bundle::built_in();
    }
    if let Some(address) = hub::address(path) {
        return Bundle::read(&Hub::from_environment()?.model(address)?);
    }
    if path.is_file() {
        return Bundle::read(path);
    }
    if let Some(model) = hub::folder::model_in(path)? {
        return Bundle::read(&model);
    }
    let (run, checkpoint) = RunFolder::locate(path)?;
    of_checkpoint(&run, &checkpoint, weights)
        .with_context(|| format!("cannot load {}", path.display()))
}

fn of_checkpoint(run: &RunFolder, checkpoint: &Path, weights: Weights) -> Result<Bundle> {
    let (info, file) = CheckpointInfo::read(checkpoint)
        .and_then(|info| {
            let file = info.file(checkpoint, weights.file())?;
            Ok((info, file))
        })
        .map_err(|error| match error.is::<Hinted>() {
            true => error,
            false => hinted(
                format!("{error:#}"),
                "copy it again, or name another of the run's checkpoints: RUN/checkpoints/step-N",
            ),
        })?;
    let config = Config::read(&run.config())?;
    let tensors: Tensors = Reader::open(&file)?.tensors()?;
    let mut bundle = match info.stage.as_str() {
        "train-vae" => Bundle::new(config, tensors),
        "train-gen" => {
            let tokenizer = Bundle::read(&run.tokenizer())?;
            if info.frozen.get(TOKENIZER) != Some(&tokenizer.tokenizer_hash()?) {
                return Err(hinted(
                    format!(
                        "{} is not the tokenizer that the run was started with",
                        run.tokenizer().display()
                    ),
                    "it is damaged or was replaced: copy it again",
                ));
            }
            let ours = tokenizer.config.clone();
            Bundle {
                // The generator's own settings come from its run; the rest come from its tokenizer.
                config: Config {
                    generator: config.generator,
                    train_gen: config.train_gen,
                    sample: config.sample,
                    ..ours
                },
                generator: Some(tensors),
                ..tokenizer
            }
        }
        other => {
            return Err(hinted(
                format!("{}: stage `{other}` is unknown", checkpoint.display()),
                "another version of rdpm wrote it",
            ));
        }
    };
    if let Ok(text) = fs::read_to_string(run.classes()) {
        bundle.classes = serde_json::from_str(&text)
            .with_context(|| format!("{} is not JSON", run.classes().display()))?;
    }
    let stage = info.stage.replace('-', "_");
    let name = fs::canonicalize(run.path())?;
    put(
        &mut bundle.provenance,
        &stage,
        json!({
            "run": name.file_name().unwrap_or_default().to_string_lossy(),
            "step": info.step,
            "finished": info.finished,
            "seed": info.seed,
            "weights": weights.name(),
            "version": info.version,
        }),
    );
    put(&mut bundle.metrics, &stage, last_metrics(run, info.step));
    Ok(bundle)
}

fn put(object: &mut Value, key: &str, value: Value) {
    match object {
        Value::Object(map) => {
            map.insert(key.to_string(), value);
        }
        other => *other = json!({ key: value }),
    }
}

/// The newest value of every metric logged up to `step`, except those of the machine's speed, so
/// that equal runs give equal bundles.
fn last_metrics(run: &RunFolder, step: u64) -> Value {
    const PACE: [&str; 2] = ["images_per_second", "eta_seconds"];
    let lines = MetricsLog::read(&run.metrics()).unwrap_or_default();
    let until = |line: &Map<String, Value>| {
        line.get("step")
            .and_then(Value::as_u64)
            .is_some_and(|s| s <= step)
    };
    let metrics = lines.into_iter().filter(until).flatten();
    Value::Object(
        metrics
            .filter(|(name, _)| !PACE.contains(&name.as_str()))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::report;
    use crate::store::run::{CHECKPOINT_FORMAT, Run};
    use crate::store::{digest, safetensors};
    use candle_core::{Device, Tensor};

    fn tensors(name: &str, value: f32) -> Result<Tensors> {
        let tensor = Tensor::full(value, 3, &Device::Cpu)?;
        Ok(Tensors::from([(name.to_string(), tensor)]))
    }

    /// A run folder as training leaves it; its EMA holds `step` and its raw weights the negative.
    fn run(root: &Path, stage: &str, preset: &str, step: u64, finished: bool) -> Result<PathBuf> {
        let path = root.join(format!("{stage}-{step}"));
        let mut run = Run::create(Some(&path), stage, &Config::load(Some(preset), &[])?)?;
        for at in [step / 2, step] {
            let folder = run.checkpoints().join(format!("step-{at:08}"));
            fs::create_dir(&folder)?;
            let metrics = Map::from_iter([("loss".into(), json!(at))]);
            run.metrics.append(at, metrics)?;
            let mut sha256 = Map::new();
            for (weights, value) in [(Weights::Ema, at as f32), (Weights::Raw, -(at as f32))] {
                let file = folder.join(weights.file());
                safetensors::write(&file, &tensors("w", value)?, &Default::default())?;
                sha256.insert(weights.file().into(), json!(digest::sha256(&file)?));
            }
            let state = json!({
                "format": CHECKPOINT_FORMAT, "stage": stage, "step": at, "finished": finished,
                "seed": 7, "version": "0.1.0", "sha256": sha256,
                "frozen": {TOKENIZER: digest::of_tensors(&tensors("w", 10.0)?)?},
            });
            fs::write(folder.join("state.json"), state.to_string())?;
        }
        Ok(path)
    }

    fn first(tensors: &Tensors) -> Result<f32> {
        Ok(tensors["w"].to_vec1::<f32>()?[0])
    }

    #[test]
    fn a_run_a_checkpoint_and_a_bundle_are_loaded_alike() -> Result<()> {
        let root = tempfile::tempdir()?;
        let path = run(root.path(), "train-vae", "demo", 10, true)?;
        let whole = load(&path, Weights::Ema)?;
        assert_eq!(first(&whole.tokenizer)?, 10.0);
        assert_eq!(whole.metrics["train_vae"]["loss"], 10);
        assert_eq!(whole.provenance["train_vae"]["seed"], 7);
        assert_eq!(first(&load(&path, Weights::Raw)?.tokenizer)?, -10.0);
        let earlier = load(&path.join("checkpoints/step-00000005"), Weights::Ema)?;
        assert_eq!(first(&earlier.tokenizer)?, 5.0);
        assert_eq!(earlier.metrics["train_vae"]["loss"], 5);
        let file = root.path().join("a.safetensors");
        whole.write(&file, false)?;
        assert_eq!(first(&load(&file, Weights::Ema)?.tokenizer)?, 10.0);
        Ok(())
    }

    #[test]
    fn a_generator_run_brings_its_tokenizer_with_that_ones_configuration() -> Result<()> {
        let root = tempfile::tempdir()?;
        let vae = load(
            &run(root.path(), "train-vae", "demo", 10, true)?,
            Weights::Ema,
        )?;
        let path = run(root.path(), "train-gen", "smoke", 20, true)?;
        vae.write(&path.join("tokenizer.safetensors"), false)?;
        fs::write(
            path.join("classes.json"),
            r#"[{"index":0,"wnid":"a","words":"b"}]"#,
        )?;
        let model = load(&path, Weights::Ema)?;
        assert_eq!(first(&model.tokenizer)?, 10.0);
        assert_eq!(first(model.generator()?)?, 20.0);
        assert_eq!(model.config.tokenizer, vae.config.tokenizer);
        assert_eq!(model.config.generator.depth, 2);
        assert_eq!(model.classes[0]["words"], "b");
        assert_eq!(model.provenance["train_vae"]["step"], 10);
        assert_eq!(model.provenance["train_gen"]["step"], 20);
        Ok(())
    }

    #[test]
    fn a_damaged_checkpoint_is_not_loaded() -> Result<()> {
        let root = tempfile::tempdir()?;
        let path = run(root.path(), "train-vae", "demo", 10, true)?;
        let file = path.join("checkpoints/step-00000010/ema.safetensors");
        let mut bytes = fs::read(&file)?;
        *bytes.last_mut().expect("not empty") ^= 1;
        fs::write(&file, bytes)?;
        let (text, code) = report(&load(&path, Weights::Ema).unwrap_err());
        assert!(text.contains("ema.safetensors has SHA-256"), "{text}");
        assert!(text.contains("hint: ") && code == 1, "{text}");
        load(&path, Weights::Raw)?;
        load(&path.join("checkpoints/step-00000005"), Weights::Ema)?;
        fs::write(path.join("checkpoints/step-00000010/state.json"), "{")?;
        let (text, _) = report(&load(&path, Weights::Raw).unwrap_err());
        assert!(
            text.contains("state.json") && text.contains("hint: copy it"),
            "{text}"
        );
        Ok(())
    }

    #[test]
    fn another_tokenizer_in_a_generators_run_is_refused() -> Result<()> {
        let root = tempfile::tempdir()?;
        let path = run(root.path(), "train-gen", "smoke", 20, true)?;
        let other = Bundle::new(Config::load(Some("demo"), &[])?, tensors("w", 11.0)?);
        other.write(&path.join("tokenizer.safetensors"), false)?;
        let (text, _) = report(&load(&path, Weights::Ema).unwrap_err());
        assert!(text.contains("is not the tokenizer"), "{text}");
        Ok(())
    }

    #[test]
    fn without_a_name_the_newest_finished_generator_is_taken() -> Result<()> {
        let root = tempfile::tempdir()?;
        assert_eq!(newest_finished(root.path()), None);
        let old = run(root.path(), "train-gen", "smoke", 10, true)?;
        let time = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
        for step in ["checkpoints/step-00000005", "checkpoints/step-00000010"] {
            fs::File::open(old.join(step).join("state.json"))?.set_modified(time)?;
        }
        run(root.path(), "train-gen", "smoke", 20, false)?;
        run(root.path(), "train-vae", "smoke", 30, true)?;
        assert_eq!(newest_finished(root.path()), Some(old));
        let new = run(root.path(), "train-gen", "smoke", 40, true)?;
        assert_eq!(newest_finished(root.path()), Some(new));
        fs::create_dir(root.path().join("eval-fid-0"))?;
        let unfinished = unfinished(root.path());
        let names: Vec<_> = unfinished
            .iter()
            .map(|(path, why)| (path.file_name().and_then(|name| name.to_str()), *why))
            .collect();
        assert_eq!(
            names,
            [
                (Some("eval-fid-0"), "is no run"),
                (Some("train-gen-20"), "is not finished"),
                (Some("train-vae-30"), "is a tokenizer without a generator"),
            ]
        );
        Ok(())
    }

    #[test]
    fn what_is_no_model_is_named() -> Result<()> {
        let root = tempfile::tempdir()?;
        for path in [root.path().to_path_buf(), root.path().join("none")] {
            let (text, _) = report(&load(&path, Weights::Ema).unwrap_err());
            assert!(text.contains(&path.display().to_string()), "{text}");
            assert!(text.contains("hint: a run folder is"), "{text}");
        }
        Ok(())
    }
}
