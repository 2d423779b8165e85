//! How a run begins: from scratch in a new folder, or from a checkpoint of an existing run.

use std::path::PathBuf;
use std::time::Duration;

use candle_core::{Device, Tensor};

use super::checkpoint::{self, Contents, State};
use super::patience::Patience;
use super::stage::{Job, Step};
use super::step_metrics::StepMetrics;
use super::watchdog::Watchdog;
use super::{gpu_memory, start_record};
use crate::config::{ComputeType, Config, TrainConfig};
use crate::data::loader::{Loader, LoaderOptions};
use crate::data::{Classes, Source, source};
use crate::error::{Context, Result, usage};
use crate::gpu_error;
use crate::interrupt::Interrupt;
use crate::sample::Scale;
use crate::store::run::{Locked, Run, RunFolder};
use crate::store::{atomic, digest};
use crate::world::World;

/// What the user asked for, for both stages.
#[derive(Debug, Clone)]
pub struct Request {
    pub config: Config,
    /// The processes that train together.
    pub world: World,
    /// The seed of a new run; a resumed run keeps its own.
    pub seed: u64,
    pub device: Device,
    /// The folder of a new run; by default a new folder under `runs/`.
    pub out: Option<PathBuf>,
    /// The run, or one of its checkpoints, to continue.
    pub resume: Option<PathBuf>,
    /// Whether to use the newest older intact checkpoint instead of a damaged one.
    pub fall_back: bool,
    /// Threads that read and decode images.
    pub workers: usize,
    /// Skip images that cannot be decoded instead of stopping.
    pub skip_bad: bool,
    /// Write TensorBoard's event files; a run that has some goes on with them.
    pub tensorboard: bool,
    /// Of the sheets of images that the run writes.
    pub scale: Scale,
    /// Ends the run when it hangs.
    pub watchdog: Option<Watchdog>,
    /// How long the run goes on while a full disk keeps it from being saved.
    pub save_patience: Duration,
}

/// A run before its first step in this process.
pub struct Begun {
    pub state: State,
    /// The run to continue and its checkpoint. A new run's folder is made only when everything else
    /// is ready.
    resumed: Option<Resumed>,
}

struct Resumed {
    folder: RunFolder,
    /// At rank 0.
    lock: Option<Locked>,
    contents: Contents,
}

impl Request {
    /// The state of a new run, or of the run to resume, which is locked from here on but not
    /// changed yet.
    ///
    /// Errors: another process writes to the run; the checkpoint is damaged, of another stage, or
    /// was made with other data; a rank of the world has another configuration, seed, data set or
    /// step.
    pub fn begin(&self, stage: &str, source: &dyn Source) -> Result<Begun> {
        let begun = self.begin_here(stage, source)?;
        let (state, config) = (&begun.state, self.config.to_toml()?);
        // Only once all ranks have read the run may rank 0 write to it.
        self.world.same(&[
            ("the command", state.stage.clone()),
            ("the seed", state.seed.to_string()),
            (
                "a configuration of SHA-256",
                digest::of_bytes(config.as_bytes()),
            ),
            ("images of fingerprint", state.data.clone()),
            ("a run after step", state.step.to_string()),
        ])?;
        Ok(begun)
    }

    fn begin_here(&self, stage: &str, source: &dyn Source) -> Result<Begun> {
        let (images, data) = (source.len() as u64, source.fingerprint()?);
        let Some(path) = &self.resume else {
            let state = State::new(stage, self.seed, images, data);
            return Ok(Begun {
                state,
                resumed: None,
            });
        };
        let (folder, mut checkpoint) = RunFolder::locate(path)?;
        if self.fall_back {
            checkpoint = checkpoint::newest_usable(&checkpoint);
        }
        let state = checkpoint::read_state(&checkpoint)?;
        if state.stage != stage {
            return Err(usage(
                format!("{} is a run of {}", folder.path().display(), state.stage),
                format!(
                    "continue it with: rdpm {} --resume {}",
                    state.stage,
                    path.display()
                ),
            ));
        }
        let lock = (self.world.is_first())
            .then(|| Run::lock(folder.path()))
            .transpose()?;
        let (state, contents) = checkpoint::load(&checkpoint)?;
        if (state.images, &state.data) != (images, &data) {
            return Err(usage(
                format!(
                    "the data set of {images} images differs from the one that the run was started with, of {} images",
                    state.images
                ),
                "if it has moved, name its new path with --data; its content must be the same",
            ));
        }
        Ok(Begun {
            state,
            resumed: Some(Resumed {
                folder,
                lock,
                contents,
            }),
        })
    }
}

impl Begun {
    /// Ties the run to weights that it reads but does not train, by the hash of their tensors;
    /// `what` names them.
    ///
    /// Errors: a resumed run was started with other weights; a rank of the world has others.
    pub fn record_frozen_hash(&mut self, world: &World, what: &str, hash: String) -> Result<()> {
        world.same(&[(&format!("a {what} of SHA-256"), hash.clone())])?;
        if self.resumed.is_some() && self.state.frozen.get(what) != Some(&hash) {
            return Err(usage(
                format!("the run was not started with this {what}: the weights differ"),
                "it can only continue with the same weights, in whatever file; for others, start a new run",
            ));
        }
        self.state.frozen.insert(what.to_string(), hash);
        Ok(())
    }

    /// Trains to the end; `fill` writes the stage's own files into a new run's folder. Returns the
    /// run's folder.
    pub fn train<S: Step>(
        self,
        request: &Request,
        config: &TrainConfig,
        stage: &mut S,
        fill: impl FnOnce(&RunFolder) -> Result<()>,
    ) -> Result<PathBuf> {
        let less_memory = gpu_memory::remedy(&self.state.stage);
        let trained = self.train_here(request, config, stage, fill);
        let trained =
            trained.map_err(|error| gpu_error::explained(error, less_memory, gpu_memory::AGAIN));
        if let Err(error) = &trained {
            // The end of the stage's loaders may take long, or never come.
            request.world.fails(error);
        }
        trained
    }

    fn train_here<S: Step>(
        self,
        request: &Request,
        config: &TrainConfig,
        stage: &mut S,
        fill: impl FnOnce(&RunFolder) -> Result<()>,
    ) -> Result<PathBuf> {
        let Begun { mut state, resumed } = self;
        let (new, mut interval) = (resumed.is_none(), StepMetrics::default());
        let world = &request.world;
        let (folder, mut run) = match resumed {
            Some(mut resumed) => {
                interval = StepMetrics::take(&mut resumed.contents.optimizer)?;
                stage.restore(resumed.contents, &state.counters)?;
                let run = resumed
                    .lock
                    .map(|locked| locked.resume(state.step, &request.config))
                    .transpose()?;
                if let Some(run) = &run {
                    // Whichever checkpoint was the latest, the run continues from this one.
                    checkpoint::set_latest(&run.checkpoints(), state.step)?;
                }
                (resumed.folder, run)
            }
            None => {
                let create = || {
                    let run = Run::create(request.out.as_deref(), &state.stage, &request.config)?;
                    fill(run.folder())?;
                    Ok::<_, crate::error::Error>(run)
                };
                let run = world.is_first().then(create).transpose()?;
                let path = run.as_ref().map(|run| run.path().display().to_string());
                let path = world.broadcast(path.unwrap_or_default().into_bytes())?;
                let path = PathBuf::from(String::from_utf8(path)?);
                (RunFolder::of_another(path), run)
            }
        };
        if let Some(run) = &mut run {
            if request.tensorboard || run.folder().tensorboard().is_dir() {
                run.write_events(state.step, &request.config)?;
            }
            if let Err(error) = start_record::append(&folder, state.step, world, &request.device) {
                tracing::warn!("{error:#}");
            }
        }
        let (steps, path) = (
            config.total_steps(state.images),
            folder.path().to_path_buf(),
        );
        let (at, name) = (state.step, &state.stage);
        tracing::info!("{name}: {}, from step {at} to {steps}", path.display());
        let shortened = at >= steps && !state.finished;
        if at >= steps {
            tracing::info!("nothing to do: the run is finished (--steps sets a later end)");
            state.finished = true;
        }
        let interrupt = Interrupt::listen()?;
        world.at(state.step);
        let mut job = Job {
            world,
            folder: &folder,
            run: run.as_mut(),
            config,
            steps,
            state,
            interval,
            interrupt,
            save_first: new || shortened,
            scale: request.scale,
            watchdog: request.watchdog.clone(),
            patience: Patience::new(request.save_patience),
        };
        job.train(stage)?;
        Ok(path)
    }
}

/// The training images. Rank 0 looks at them first, so that the others find its index.
pub fn training_source(
    config: &Config,
    world: &World,
    skip_bad: bool,
) -> Result<std::sync::Arc<dyn Source>> {
    if config.data.train.is_empty() {
        return Err(usage(
            "no training images",
            "name them with --data PATH (a folder, a tar shard or a glob), or data.train in the configuration",
        ));
    }
    let source = world.first_then(|| source::open(&config.data.train, skip_bad))?;
    if world.is_first() {
        source.warn_of_doubts();
    }
    Ok(source)
}

/// `count` images spread over the validation set, or over the training set if there is none:
/// [B,H,W,3].
pub fn validation_images(
    config: &Config,
    train: &std::sync::Arc<dyn Source>,
    count: usize,
    skip_bad: bool,
) -> Result<Tensor> {
    let source = match config.data.val.is_empty() {
        true => {
            tracing::info!("no validation images (--val): metrics and images use training images");
            train.clone()
        }
        false => source::open(&config.data.val, skip_bad)?,
    };
    let options = LoaderOptions {
        batch_size: count,
        workers: 1,
        skip_bad,
    };
    let mut loader = Loader::spread(source, &options, config.data.image_size)?;
    let batch = loader
        .next()
        .context("the validation set holds no images")??;
    Ok(batch.images)
}

/// Writes the names of a run's classes beside its weights.
pub fn write_classes(folder: &RunFolder, classes: &Classes) -> Result<()> {
    atomic::write_file(&folder.classes(), &serde_json::to_vec_pretty(classes)?)
}

/// Refuses a compute type that `device` does not support.
pub fn check_compute_type(section: &str, config: &TrainConfig, device: &Device) -> Result<()> {
    match (config.compute_type, device.is_cpu()) {
        (ComputeType::F32, _) => Ok(()),
        (ComputeType::Bf16, true) => Err(usage(
            format!("{section}.compute_type is \"bf16\", which needs CUDA"),
            format!(
                "on the CPU, --set {section}.compute_type=f32, and recompute_blocks=0 if it is set"
            ),
        )),
        (ComputeType::Bf16, false) => Ok(()),
    }
}

/// What [`resumed_config`] takes from the configuration that was asked for.
const MAY_CHANGE: &str = "steps, epochs, recompute_blocks, recompute_levels, log_every, \
    image_every, checkpoint_every, checkpoint_minutes, keep_checkpoints, max_bad_steps, data.train, data.val, \
    loss.vgg, loss.lpips, sample.*";

/// The configuration of a resumed run: its own, except for its length and for settings that do not
/// affect the results.
///
/// Errors: `asked` differs from `own` elsewhere; names the keys.
pub fn resumed_config(own: &Config, asked: &Config) -> Result<Config> {
    let mut allowed = own.clone();
    allowed.data.train.clone_from(&asked.data.train);
    allowed.data.val.clone_from(&asked.data.val);
    allowed.sample = asked.sample.clone();
    (allowed.loss.vgg, allowed.loss.lpips) = (asked.loss.vgg.clone(), asked.loss.lpips.clone());
    for (own, asked) in [
        (&mut allowed.train_vae, &asked.train_vae),
        (&mut allowed.train_gen, &asked.train_gen),
    ] {
        *own = TrainConfig {
            steps: asked.steps,
            epochs: asked.epochs,
            recompute_blocks: asked.recompute_blocks,
            recompute_levels: asked.recompute_levels,
            log_every: asked.log_every,
            image_every: asked.image_every,
            checkpoint_every: asked.checkpoint_every,
            checkpoint_minutes: asked.checkpoint_minutes,
            keep_checkpoints: asked.keep_checkpoints,
            max_bad_steps: asked.max_bad_steps,
            ..own.clone()
        };
    }
    if allowed == *asked {
        return Ok(allowed);
    }
    Err(usage(
        format!(
            "a resumed run cannot change {}",
            differences(&allowed, asked)?.join(", ")
        ),
        format!("these may change: {MAY_CHANGE}; for the rest, start a new run"),
    ))
}

/// `section.key` of every value that differs.
fn differences(a: &Config, b: &Config) -> Result<Vec<String>> {
    let [a, b] = [serde_json::to_value(a)?, serde_json::to_value(b)?];
    let mut found = Vec::new();
    for (section, keys) in b.as_object().into_iter().flatten() {
        for (key, value) in keys.as_object().into_iter().flatten() {
            if a[section].get(key) != Some(value) {
                found.push(format!("{section}.{key}"));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::shapes::Shapes;

    #[test]
    fn a_resumed_run_may_change_its_length_and_nothing_that_decides_it() -> Result<()> {
        let own = Config::default();
        let mut longer = own.clone();
        longer.train_vae.steps = Some(77);
        longer.train_vae.log_every = 1;
        assert_eq!(resumed_config(&own, &longer)?, longer);
        let mut other = longer.clone();
        other.train_vae.lr = 1.0;
        other.tokenizer.ch = 32;
        let (text, code) = crate::error::report(&resumed_config(&own, &other).unwrap_err());
        assert!(
            text.contains("train_vae.lr") && text.contains("tokenizer.ch"),
            "{text}"
        );
        let refused = text.lines().next().unwrap_or_default();
        assert!(!refused.contains("log_every"), "{text}");
        assert_eq!(code, 2);
        Ok(())
    }

    /// `config` with another valid value at `section.key`.
    fn changed(config: &Config, section: &str, key: &str) -> Config {
        let mut candidates = vec![
            serde_json::json!(true),
            serde_json::json!(false),
            serde_json::json!(3),
            serde_json::json!(4),
            serde_json::json!(0.25),
            serde_json::json!("other"),
            serde_json::json!([1, 2, 2, 8]),
            serde_json::json!([0.5, 0.25]),
            serde_json::json!(["other"]),
        ];
        // An enum's error lists its variants.
        let mut next = 0;
        while let Some(value) = candidates.get(next).cloned() {
            let mut json = serde_json::to_value(config).expect("JSON");
            json[section][key] = value;
            match serde_json::from_value::<Config>(json) {
                Ok(other) if other != *config => return other,
                Ok(_) => {}
                Err(error) => {
                    let error = error.to_string();
                    let (_, names) = error.split_once("expected").unwrap_or_default();
                    candidates.extend(names.split('`').skip(1).step_by(2).map(|name| name.into()));
                }
            }
            next += 1;
        }
        panic!("no candidate is a value of {section}.{key}");
    }

    #[test]
    fn a_refused_change_names_exactly_the_keys_that_may_change() {
        // With all optional keys set: those that are not are no keys in JSON.
        let mut own = Config::default();
        (own.loss.vgg, own.loss.lpips) = (Some("vgg".into()), Some("lpips".into()));
        (own.train_gen.steps, own.train_gen.epochs) = (Some(1), Some(1.0));
        let named: Vec<&str> = MAY_CHANGE.split(", ").collect();
        let all = serde_json::to_value(&own).expect("JSON");
        let mut used = std::collections::BTreeSet::<&&str>::new();
        for (section, keys) in all.as_object().expect("sections") {
            for key in keys.as_object().expect("keys").keys() {
                let names = [
                    if section.starts_with("train_") {
                        key.clone()
                    } else {
                        format!("{section}.{key}")
                    },
                    format!("{section}.*"),
                ];
                let name = named.iter().find(|name| names.iter().any(|n| n == *name));
                used.extend(name);
                let resumed = resumed_config(&own, &changed(&own, section, key));
                assert_eq!(resumed.is_ok(), name.is_some(), "{section}.{key}");
            }
        }
        assert_eq!(used.len(), named.len(), "a name of MAY_CHANGE is no key");
    }

    #[test]
    fn a_resumed_run_takes_its_own_frozen_weights_and_no_others() -> Result<()> {
        let root = tempfile::tempdir()?;
        let (path, source) = (root.path().join("run"), Shapes::new(1, 4));
        let mut request = Request {
            config: Config::default(),
            world: World::alone(),
            seed: 3,
            device: Device::Cpu,
            out: Some(path.clone()),
            resume: None,
            fall_back: false,
            workers: 1,
            skip_bad: false,
            tensorboard: false,
            scale: Scale::Auto,
            watchdog: None,
            save_patience: Duration::ZERO,
        };
        let mut new = request.begin("train-vae", &source)?;
        new.record_frozen_hash(&World::alone(), "VGG16", "a".into())?;
        let run = Run::create(Some(&path), "train-vae", &request.config)?;
        checkpoint::save(&run.checkpoints(), &new.state, &Contents::default(), 1)?;
        drop(run);
        request.resume = Some(path);
        let mut resumed = request.begin("train-vae", &source)?;
        resumed.record_frozen_hash(&World::alone(), "VGG16", "a".into())?;
        let (text, code) = crate::error::report(
            &resumed
                .record_frozen_hash(&World::alone(), "VGG16", "b".into())
                .unwrap_err(),
        );
        assert!(text.contains("not started with this VGG16"), "{text}");
        assert_eq!(code, 2);
        Ok(())
    }

    #[test]
    fn bf16_on_the_cpu_is_a_usage_error() {
        let mut config = TrainConfig::vae();
        assert!(check_compute_type("train_vae", &config, &Device::Cpu).is_ok());
        config.compute_type = ComputeType::Bf16;
        let error = check_compute_type("train_vae", &config, &Device::Cpu).unwrap_err();
        let (text, code) = crate::error::report(&error);
        assert!(text.contains("needs CUDA") && code == 2, "{text}");
    }
}
