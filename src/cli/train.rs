//! The options that train-vae and train-gen share.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{ConfigArgs, Context, ScaleArgs};
use crate::config::{Config, TrainConfig};
use crate::error::{Result, usage};
use crate::interrupt::Interrupt;
use crate::store::run::RunFolder;
use crate::train::start::{Request, resumed_config};
use crate::train::start_generator::copy_tokenizer_config;
use crate::train::watchdog::Watchdog;
use crate::world::World;

/// Seconds that a step may hang where several processes wait for each other.
const TIMEOUT: u64 = 600;

/// Whose run it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Tokenizer,
    Generator,
}

#[derive(Debug, Clone, clap::Args)]
pub struct TrainArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// The run's folder [default: runs/<stage>-<time>]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Continue a run, or one of its checkpoints, bit for bit; without a value, the run at --out.
    /// auto: start the run at --out, or continue it if it exists: one command for schedulers that
    /// requeue
    #[arg(long, value_name = "RUN|auto", num_args = 0..=1)]
    pub resume: Option<Option<PathBuf>>,
    /// With --resume: where the checkpoint is damaged, continue from the newest older one that is
    /// whole, as auto does
    #[arg(long, requires = "resume")]
    pub or_older: bool,
    /// Start from other weights, by name: a run's moving average (EMA), a bundle,
    /// hf://owner/repo[@revision], `builtin`, or a file (.pth, .ckpt, .safetensors); tensors that
    /// do not match are listed and start from scratch, and so does the optimizer
    #[arg(long, value_name = "RUN|BUNDLE|FILE")]
    pub init: Option<PathBuf>,
    /// Steps to train (replaces the configuration's steps and epochs)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub steps: Option<u64>,
    /// Seed of every random number of a new run [default: 0]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Threads that read and decode images; results do not depend on it
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub workers: usize,
    /// Also write scalars and pictures to RUN/tensorboard/ for TensorBoard; a resumed run goes on
    /// with what it has there
    #[arg(long)]
    pub tensorboard: bool,
    /// Print what the run would need (parameters, memory, FLOP, steps), and exit
    #[arg(long)]
    pub dry_run: bool,
    /// Skip images that cannot be decoded, and count them
    #[arg(long)]
    pub skip_bad_images: bool,
    /// End with an error when a step takes SECONDS longer than any before it, or nothing is read or
    /// made for so long before the first, as where a disk no longer answers; 0: never [default: 600
    /// in several processes, else 0]
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
    /// Train on for SECONDS while the disk is too full for a checkpoint, which is tried again each
    /// minute; 0: end at once
    #[arg(long, value_name = "SECONDS", default_value_t = 1800)]
    pub save_patience: u64,
    #[command(flatten)]
    pub scale: ScaleArgs,
}

impl Stage {
    /// Its section of the configuration.
    fn section(self) -> &'static str {
        match self {
            Stage::Tokenizer => "train_vae",
            Stage::Generator => "train_gen",
        }
    }

    fn settings(self, config: &mut Config) -> &mut TrainConfig {
        match self {
            Stage::Tokenizer => &mut config.train_vae,
            Stage::Generator => &mut config.train_gen,
        }
    }
}

impl TrainArgs {
    /// Runs `work` in this process's world; a dry run needs no other process.
    pub fn together(
        &self,
        context: &Context,
        work: impl FnOnce(&Context, &World) -> Result<()>,
    ) -> Result<()> {
        let (context, world) = match self.dry_run {
            true => (context.clone(), World::alone()),
            false => context.join()?,
        };
        world.run(|world| {
            // A signal before the first step lets all ranks stop together after it.
            let _listening = (world.size() > 1).then(Interrupt::listen).transpose()?;
            work(&context, world)
        })
    }

    /// How much longer than others a step may take, and the first step to begin.
    fn timeout(&self, world: &World) -> Option<Duration> {
        let many = (world.size() > 1).then_some(TIMEOUT);
        let seconds = self.timeout.or(many).filter(|seconds| *seconds > 0);
        seconds.map(Duration::from_secs)
    }

    /// Whether a missing run is started rather than an error.
    pub fn is_auto(&self) -> bool {
        let named = self.resume.as_ref().and_then(Option::as_deref);
        named == Some(Path::new("auto"))
    }

    /// The request for a run of `stage`.
    ///
    /// Errors: a resumed run with options that would change its results; micro-batches that the
    /// world's processes cannot divide.
    pub fn request(&self, context: &Context, world: &World, stage: Stage) -> Result<Request> {
        let watchdog = self.timeout(world);
        let watchdog = watchdog
            .map(|timeout| Watchdog::start(world, timeout))
            .transpose()?;
        let resume = match self.is_auto() {
            true => self.begun()?,
            false => self.resumed()?,
        };
        let mut config = match &resume {
            None => {
                let mut config = self.config.load()?;
                raise(&mut config, world, stage);
                config
            }
            Some(path) => self.of_run(path, world, stage)?,
        };
        check_shares(&mut config, world, stage, resume.is_some())?;
        if let Some(steps) = self.steps {
            stage.settings(&mut config).steps = Some(steps);
        }
        let device = context.device()?;
        #[cfg(feature = "cuda")]
        world.connect(&device)?;
        Ok(Request {
            config,
            world: world.clone(),
            seed: self.seed.unwrap_or(0),
            device,
            out: self.out.clone(),
            resume,
            fall_back: self.is_auto() || self.or_older,
            workers: self.workers,
            skip_bad: self.skip_bad_images,
            tensorboard: self.tensorboard,
            scale: self.scale.scale,
            watchdog,
            save_patience: Duration::from_secs(self.save_patience),
        })
    }

    /// The weights that the run starts from; a run that has already started keeps its own.
    ///
    /// Errors: a resumed run.
    pub fn init(&self, request: &Request) -> Result<Option<&Path>> {
        if self.init.is_some() && self.resume.is_some() && !self.is_auto() {
            return Err(usage(
                "--init with --resume",
                "a resumed run continues from its own weights; leave --init out",
            ));
        }
        Ok(self.init.as_deref().filter(|_| request.resume.is_none()))
    }

    /// The run at --out if it exists. One that stopped before its first checkpoint starts from
    /// scratch.
    fn begun(&self) -> Result<Option<PathBuf>> {
        let Some(out) = &self.out else {
            return Err(usage(
                "--resume auto without a folder",
                "name the run to start or to continue: --out DIR",
            ));
        };
        let run = RunFolder::open(out).ok();
        let Some(run) = run.filter(|run| run.latest().is_ok()) else {
            return Ok(None);
        };
        // A damaged state has no seed to compare; resuming finds an older one.
        match (self.seed, run.info()) {
            (Some(asked), Ok(info)) if info.seed != asked => Err(usage(
                format!(
                    "--seed {asked}: {} was started with seed {}",
                    out.display(),
                    info.seed
                ),
                "leave --seed out, or start another run with another --out",
            )),
            _ => Ok(Some(out.clone())),
        }
    }

    /// The run named by --resume, or by --out if --resume has no value.
    fn resumed(&self) -> Result<Option<PathBuf>> {
        let Some(named) = &self.resume else {
            return Ok(None);
        };
        if self.seed.is_some() {
            return Err(usage(
                "--seed with --resume",
                "a resumed run keeps its own seed",
            ));
        }
        match (named, &self.out) {
            (Some(_), Some(_)) => Err(usage(
                "--resume RUN and --out together",
                "a resumed run continues in its own folder",
            )),
            (None, None) => Err(usage("--resume without a run", "name it: --resume RUN")),
            (Some(run), None) | (None, Some(run)) => Ok(Some(run.clone())),
        }
    }

    /// The run's own configuration with --set, --data and --val applied. With --resume auto,
    /// --config is applied too; it must agree with the run on everything that decides its results.
    fn of_run(&self, path: &Path, world: &World, stage: Stage) -> Result<Config> {
        let named = self.config.config.clone();
        if named.is_some() && !self.is_auto() {
            return Err(usage(
                "--config with --resume",
                "a resumed run keeps its own configuration; --resume auto takes the command that started it",
            ));
        }
        let (folder, _) = RunFolder::locate(path)?;
        let own = Config::read(&folder.config())?;
        let over = ConfigArgs {
            config: named.or_else(|| Some(folder.config().display().to_string())),
            ..self.config.clone()
        };
        let mut asked = over.load()?;
        if self.is_auto() {
            // As it was when the run began, perhaps with more processes than now.
            raise(&mut asked, world, stage);
            let mut own = own.clone();
            let begun = stage.settings(&mut own).accumulate;
            let train = stage.settings(&mut asked);
            if train.accumulate < begun {
                tracing::info!(
                    "{}.accumulate stays {begun}, with which the run was begun",
                    stage.section()
                );
                train.accumulate = begun;
            }
        }
        if stage == Stage::Generator && self.is_auto() {
            // The tokenizer's settings were taken from the tokenizer when the run began.
            copy_tokenizer_config(&mut asked, &own);
        }
        resumed_config(&own, &asked)
    }
}

/// Gives every process a micro-batch of each step.
fn raise(config: &mut Config, world: &World, stage: Stage) {
    let train = stage.settings(config);
    if train.accumulate >= world.size() {
        return;
    }
    if world.is_first() {
        tracing::warn!(
            "{}.accumulate is {}: raised to {}, a micro-batch for each process",
            stage.section(),
            train.accumulate,
            world.size()
        );
    }
    train.accumulate = world.size();
}

/// Refuses micro-batches that the processes cannot divide equally.
fn check_shares(config: &mut Config, world: &World, stage: Stage, resumed: bool) -> Result<()> {
    let (train, size) = (stage.settings(config), world.size());
    let divides = |accumulate: usize| {
        accumulate.is_multiple_of(size) && train.batch_size.is_multiple_of(accumulate)
    };
    if divides(train.accumulate) {
        return Ok(());
    }
    let key = format!("{}.accumulate", stage.section());
    let fits = (1..=train.batch_size).filter(|accumulate| divides(*accumulate));
    let nearest = fits.min_by_key(|accumulate| accumulate.abs_diff(train.accumulate));
    Err(usage(
        format!(
            "{key} is {}: {size} processes cannot divide the micro-batches of {} images a step",
            train.accumulate, train.batch_size
        ),
        match nearest {
            _ if resumed => {
                format!("a run keeps its {key}: go on with a number of processes that divides it")
            }
            Some(nearest) => format!("--set {key}={nearest}"),
            None => format!(
                "choose a {}.batch_size that is a multiple of {size}",
                stage.section()
            ),
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::report;

    #[test]
    fn one_process_takes_any_number_of_micro_batches() -> Result<()> {
        let (mut config, world) = (Config::default(), World::alone());
        for stage in [Stage::Tokenizer, Stage::Generator] {
            for accumulate in [1, 2, 4] {
                stage.settings(&mut config).accumulate = accumulate;
                raise(&mut config, &world, stage);
                assert_eq!(stage.settings(&mut config).accumulate, accumulate);
                check_shares(&mut config, &world, stage, false)?;
            }
        }
        stage_error(&mut config, &world);
        Ok(())
    }

    fn stage_error(config: &mut Config, world: &World) {
        config.train_gen.batch_size = 10;
        config.train_gen.accumulate = 4;
        let refused = check_shares(config, world, Stage::Generator, false).unwrap_err();
        let (text, code) = report(&refused);
        assert!(
            text.contains("--set train_gen.accumulate=5") && code == 2,
            "{text}"
        );
    }
}
