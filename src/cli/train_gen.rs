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
    /// Keep latents in the folder DIR: made at the start if it is missing, part by part (each image
    /// and its mirror image, encoded once, in bf16), and read from then on
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Images of a part of the cache, which is made whole or not at all [default: 8192, or 1/512 of
    /// the images if that is more]
    #[arg(long, value_name = "N", requires = "cache", value_parser = clap::value_parser!(u32).range(1..))]
    cache_part: Option<u32>,
}

pub fn run(args: &Args, context: &Context) -> Result<()> {
    args.train
        .together(context, |context, world| train(args, context, world))
}

fn train(args: &Args, context: &Context, world: &World) -> Result<()> {
    let request = args.train.request(context, world, Stage::Generator)?;
    // A run that exists has its own copy of the tokenizer.
    let has_begun = args.train.is_auto() && request.resume.is_some();
    let options = Options {
        vae: args.vae.clone().filter(|_| !has_begun),
        cache: args.cache.clone(),
        cache_part: args.cache_part.map(|n| n as usize),
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
