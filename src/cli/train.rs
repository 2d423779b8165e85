//! The options that train-vae and train-gen share.

use std::path::PathBuf;

use super::{ConfigArgs, Context};
use crate::config::{Config, TrainConfig};
use crate::error::{Result, usage};
use crate::store::run::RunFolder;
use crate::train::start::{Request, resumed_config};

#[derive(Debug, Clone, clap::Args)]
pub struct TrainArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// The run's folder [default: runs/<stage>-<time>]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Go on with a run (or with one of its checkpoints), bit for bit; without a value, with the run at --out
    #[arg(long, value_name = "RUN", num_args = 0..=1)]
    pub resume: Option<Option<PathBuf>>,
    /// Steps to train (replaces the configuration's steps and epochs)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub steps: Option<u64>,
    /// Decides every random number of a new run [default: 0]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Threads that read and decode images; they change no result
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub workers: usize,
    /// Print what the run would take (parameters, memory, FLOP, steps), and end
    #[arg(long)]
    pub dry_run: bool,
    /// Leave out images that cannot be decoded, and say how many
    #[arg(long)]
    pub skip_bad_images: bool,
}

impl TrainArgs {
    /// The request that these options make; `section` picks the stage's own configuration.
    ///
    /// Errors: a resumed run with options that would change its results.
    pub fn request(
        &self,
        context: &Context,
        section: impl Fn(&mut Config) -> &mut TrainConfig,
    ) -> Result<Request> {
        let resume = self.resumed()?;
        let mut config = match &resume {
            None => self.config.load()?,
            Some(path) => self.of_run(path)?,
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
            workers: self.workers,
            skip_bad: self.skip_bad_images,
        })
    }

    /// The run of --resume, or of --out where --resume has no value.
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
                "a resumed run goes on in its own folder",
            )),
            (None, None) => Err(usage("--resume without a run", "name it: --resume RUN")),
            (Some(run), None) | (None, Some(run)) => Ok(Some(run.clone())),
        }
    }

    /// The run's own configuration with --set, --data and --val over it.
    fn of_run(&self, path: &std::path::Path) -> Result<Config> {
        if self.config.config.is_some() {
            return Err(usage(
                "--config with --resume",
                "a resumed run keeps its own configuration",
            ));
        }
        let (folder, _) = RunFolder::locate(path)?;
        let own = Config::read(&folder.config())?;
        let over = ConfigArgs {
            config: Some(folder.config().display().to_string()),
            ..self.config.clone()
        };
        resumed_config(&own, &over.load()?)
    }
}
