//! `rdpm train-gen`: trains the generator on a tokenizer's latents.

use std::path::{Path, PathBuf};

use super::Context;
use super::train::{Stage, TrainArgs};
use crate::error::Result;
use crate::train::start_generator::{self, Options};
use crate::world::World;

/// Train the generator: predict each step's codes from its noise and the sum so far
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub(super) train: TrainArgs,
    /// The tokenizer: a train-vae run, a bundle, hf://owner/repo[@revision] or `builtin`; its
    /// moving average (EMA) is used
    #[arg(long, value_name = "RUN|BUNDLE", required_unless_present = "resume")]
    vae: Option<PathBuf>,
    /// Keep latents in FILE: written at the start if it is missing (each image and its mirror
    /// image, encoded once, in bf16), and read from then on
    #[arg(long, value_name = "FILE")]
    cache: Option<PathBuf>,
}

pub fn run(args: &Args, context: &Context) -> Result<()> {
    args.train
        .together(context, |world| train(args, context, world))
}

fn train(args: &Args, context: &Context, world: &World) -> Result<()> {
    let request = args.train.request(context, world, Stage::Generator)?;
    // A run that exists has its own copy of the tokenizer.
    let has_begun = args.train.is_auto() && request.resume.is_some();
    let options = Options {
        vae: args.vae.clone().filter(|_| !has_begun),
        cache: args.cache.clone(),
        init: args.train.init(&request)?.map(Path::to_path_buf),
    };
    if args.train.dry_run {
        return super::print(&start_generator::estimate(&request, &options)?.text());
    }
    let run = start_generator::train(&request, &options)?;
    match world.is_first() {
        true => super::print(&format!("{}\n", run.display())),
        false => Ok(()),
    }
}
