//! `rdpm train-gen`: trains the generator on a tokenizer's latents.

use std::path::PathBuf;

use super::Context;
use super::train::TrainArgs;
use crate::error::Result;
use crate::train::start_generator;

/// Train the generator: the codes of each step from its noise and what has been accumulated
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    train: TrainArgs,
    /// The tokenizer: a train-vae run or a bundle; its moving average is used
    #[arg(long, value_name = "RUN|BUNDLE", required_unless_present = "resume")]
    vae: Option<PathBuf>,
}

pub fn run(args: &Args, context: &Context) -> Result<()> {
    let request = args
        .train
        .request(context, |config| &mut config.train_gen)?;
    let run = start_generator::train(&request, args.vae.as_deref())?;
    super::print(&format!("{}\n", run.display()))
}
