//! How a run begins: anew in a folder of its own, or from a checkpoint of one that exists.

use std::path::PathBuf;

use candle_core::{Device, Tensor};

use super::checkpoint::{self, Contents, State};
use super::figures::Figures;
use super::interrupt::Interrupt;
use super::stage::{Job, Step};
use crate::config::{ComputeType, Config, TrainConfig};
use crate::data::loader::{Loader, LoaderOptions};
use crate::data::{Classes, Source, source};
use crate::error::{Context, Result, usage};
use crate::store::atomic;
use crate::store::run::{Locked, Run, RunFolder};

/// What both stages are asked for.
#[derive(Debug, Clone)]
pub struct Request {
    pub config: Config,
    /// Of a new run; a resumed one keeps its own.
    pub seed: u64,
    pub device: Device,
    /// Where a new run goes; by default a folder of its own under `runs/`.
    pub out: Option<PathBuf>,
    /// The run, or the checkpoint of one, to go on with.
    pub resume: Option<PathBuf>,
    /// Whether a damaged checkpoint is passed over for the newest older one that is whole.
    pub fall_back: bool,
    /// Threads that read and decode images.
    pub workers: usize,
    /// Images that cannot be decoded are left out instead of an error.
    pub skip_bad: bool,
}

/// Where a run stands before its first step of this process.
pub struct Begun {
    pub state: State,
    /// The run to go on with, locked, and its checkpoint. A new run's folder is made when all else is ready.
    resumed: Option<(Locked, Contents)>,
}

impl Request {
    /// A new run's state, or that of the run to be resumed, which is locked from here on and not changed yet.
    ///
    /// Errors: another process writes to it; the checkpoint is damaged, of another stage, or was made from other data.
    pub fn begin(&self, stage: &str, source: &dyn Source) -> Result<Begun> {
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
        let run = Run::lock(folder.path())?;
        let (state, contents) = checkpoint::load(&checkpoint)?;
        if (state.images, &state.data) != (images, &data) {
            return Err(usage(
                format!(
                    "the data set of {images} images is not the one that the run was started with, of {}",
                    state.images
                ),
                "--data names its new place if it has moved; its content must be the same",
            ));
        }
        Ok(Begun {
            state,
            resumed: Some((run, contents)),
        })
    }
}

impl Begun {
    /// Ties the run to weights that it reads and does not train: `what` they are, and their tensors' hash.
    ///
    /// Errors: a resumed run was started with others.
    pub fn tie(&mut self, what: &str, hash: String) -> Result<()> {
        if self.resumed.is_some() && self.state.frozen.get(what) != Some(&hash) {
            return Err(usage(
                format!("the run was not started with this {what}: its weights differ"),
                "it goes on with the same weights only, wherever they lie now; start a new run for others",
            ));
        }
        self.state.frozen.insert(what.to_string(), hash);
        Ok(())
    }

    /// Trains to the end; `fill` puts what the stage keeps there into a new run's folder. Gives the run's folder.
    pub fn train<S: Step>(
        self,
        request: &Request,
        config: &TrainConfig,
        stage: &mut S,
        fill: impl FnOnce(&RunFolder) -> Result<()>,
    ) -> Result<PathBuf> {
        let Begun { mut state, resumed } = self;
        let (new, mut interval) = (resumed.is_none(), Figures::default());
        let mut run = match resumed {
            Some((locked, mut contents)) => {
                interval = Figures::take(&mut contents.optimizer)?;
                stage.restore(contents, &state.counters)?;
                let run = locked.resume(state.step, &request.config)?;
                // Whatever was the latest, the run goes on from here.
                checkpoint::set_latest(&run.checkpoints(), state.step)?;
                run
            }
            None => {
                let run = Run::create(request.out.as_deref(), &state.stage, &request.config)?;
                fill(run.folder())?;
                run
            }
        };
        let (steps, path) = (config.total_steps(state.images), run.path().to_path_buf());
        let (at, name) = (state.step, &state.stage);
        tracing::info!("{name}: {}, from step {at} to {steps}", path.display());
        let shortened = at >= steps && !state.finished;
        if at >= steps {
            tracing::info!("nothing to do: --steps sets a later end");
            state.finished = true;
        }
        let interrupt = Interrupt::listen()?;
        let mut job = Job {
            run: &mut run,
            config,
            steps,
            state,
            interval,
            interrupt,
            save_first: new || shortened,
        };
        job.train(stage)?;
        Ok(path)
    }
}

/// The training images.
pub fn training_source(config: &Config, skip_bad: bool) -> Result<std::sync::Arc<dyn Source>> {
    if config.data.train.is_empty() {
        return Err(usage(
            "no training images",
            "name them with --data PATH (a folder, a tar shard or a glob), or data.train in the configuration",
        ));
    }
    let source = source::open(&config.data.train, skip_bad)?;
    for doubt in source.doubts() {
        tracing::warn!("{doubt}");
    }
    Ok(source)
}

/// `count` images spread over the validation set, or over the training set where there is none: [B,H,W,3].
pub fn validation_images(
    config: &Config,
    train: &std::sync::Arc<dyn Source>,
    count: usize,
    skip_bad: bool,
) -> Result<Tensor> {
    let source = match config.data.val.is_empty() {
        true => {
            tracing::info!(
                "no validation images (--val): figures and pictures are of training images"
            );
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

/// Refuses what this program cannot compute on `device`.
pub fn check_compute_type(section: &str, config: &TrainConfig, device: &Device) -> Result<()> {
    match (config.compute_type, device.is_cpu()) {
        (ComputeType::F32, _) => Ok(()),
        (ComputeType::Bf16, true) => Err(usage(
            format!("{section}.compute_type is \"bf16\", which needs CUDA"),
            format!(
                "on the CPU, --set {section}.compute_type=f32, and recompute_blocks=0 where it is set"
            ),
        )),
        (ComputeType::Bf16, false) => Ok(()),
    }
}

/// The configuration of a resumed run: its own, but for its length and for what is no part of its results.
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
        "its length, recompute_blocks, what it logs and saves, and the places of its files may change; start a new run for the rest",
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
        assert!(!text.contains("log_every"), "{text}");
        assert_eq!(code, 2);
        Ok(())
    }

    #[test]
    fn a_resumed_run_takes_its_own_frozen_weights_and_no_others() -> Result<()> {
        let root = tempfile::tempdir()?;
        let (path, source) = (root.path().join("run"), Shapes::new(1, 4));
        let mut request = Request {
            config: Config::default(),
            seed: 3,
            device: Device::Cpu,
            out: Some(path.clone()),
            resume: None,
            fall_back: false,
            workers: 1,
            skip_bad: false,
        };
        let mut new = request.begin("train-vae", &source)?;
        new.tie("VGG16", "a".into())?;
        let run = Run::create(Some(&path), "train-vae", &request.config)?;
        checkpoint::save(&run.checkpoints(), &new.state, &Contents::default(), 1)?;
        drop(run);
        request.resume = Some(path);
        let mut resumed = request.begin("train-vae", &source)?;
        resumed.tie("VGG16", "a".into())?;
        let (text, code) = crate::error::report(&resumed.tie("VGG16", "b".into()).unwrap_err());
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
