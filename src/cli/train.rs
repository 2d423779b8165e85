//! The options that train-vae and train-gen share.

use std::path::{Path, PathBuf};

use super::{ConfigArgs, Context, ScaleArgs};
use crate::config::{Config, TrainConfig};
use crate::error::{Result, usage};
use crate::store::run::RunFolder;
use crate::train::start::{Request, resumed_config};
use crate::train::start_generator::copy_tokenizer_config;

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
    /// Start from other weights, by name: a run's moving average (EMA), a bundle, or a file (.pth,
    /// .ckpt, .safetensors); tensors that do not match are listed and start from scratch, and so
    /// does the optimizer
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
    /// Print what the run would need (parameters, memory, FLOP, steps), and exit
    #[arg(long)]
    pub dry_run: bool,
    /// Skip images that cannot be decoded, and count them
    #[arg(long)]
    pub skip_bad_images: bool,
    #[command(flatten)]
    pub scale: ScaleArgs,
}

impl TrainArgs {
    /// Whether a missing run is started rather than an error.
    pub fn is_auto(&self) -> bool {
        let named = self.resume.as_ref().and_then(Option::as_deref);
        named == Some(Path::new("auto"))
    }

    /// The request for a run of `stage`; `section` selects that stage's part of the configuration.
    ///
    /// Errors: a resumed run with options that would change its results.
    pub fn request(
        &self,
        context: &Context,
        stage: Stage,
        section: impl Fn(&mut Config) -> &mut TrainConfig,
    ) -> Result<Request> {
        let resume = match self.is_auto() {
            true => self.begun()?,
            false => self.resumed()?,
        };
        let mut config = match &resume {
            None => self.config.load()?,
            Some(path) => self.of_run(path, stage)?,
        };
        if let Some(steps) = self.steps {
            section(&mut config).steps = Some(steps);
        }
        Ok(Request {
            config,
            seed: self.seed.unwrap_or(0),
            device: context.device()?,
            out: self.out.clone(),
            resume,
            fall_back: self.is_auto(),
            workers: self.workers,
            skip_bad: self.skip_bad_images,
            scale: self.scale.scale,
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
    fn of_run(&self, path: &Path, stage: Stage) -> Result<Config> {
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
        if stage == Stage::Generator && self.is_auto() {
            // The tokenizer's settings were taken from the tokenizer when the run began.
            copy_tokenizer_config(&mut asked, &own);
        }
        resumed_config(&own, &asked)
    }
}
