//! `rdpm train-vae`: trains the tokenizer.

use std::path::Path;

use super::Context;
use super::config::absolute;
use super::train::{Stage, TrainArgs};
use crate::error::Result;
use crate::train::start_vae;
use crate::world::World;

/// Train the tokenizer: encode images to latents, quantize them to codes, and decode them
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub(super) train: TrainArgs,
    /// VGG16's weights for the perceptual loss, from torchvision (.pth or .safetensors; replaces
    /// loss.vgg)
    #[arg(long, value_name = "FILE")]
    vgg: Option<String>,
    /// The weights of LPIPS's five linear heads (.pth or .safetensors; replaces loss.lpips)
    #[arg(long, value_name = "FILE")]
    lpips: Option<String>,
}

pub fn run(args: &Args, context: &Context) -> Result<()> {
    args.train
        .together(context, |context, world| train(args, context, world))
}

fn train(args: &Args, context: &Context, world: &World) -> Result<()> {
    let mut request = args.train.request(context, world, Stage::Tokenizer)?;
    let init = args.train.init(&request)?.map(Path::to_path_buf);
    let loss = &mut request.config.loss;
    for (asked, own) in [(&args.vgg, &mut loss.vgg), (&args.lpips, &mut loss.lpips)] {
        if let Some(asked) = asked {
            *own = Some(absolute(asked)?);
        }
    }
    if args.train.dry_run {
        return super::print(&start_vae::estimate(&request, init.as_deref())?.text());
    }
    let run = start_vae::train(&request, init.as_deref())?;
    match world.is_first() {
        true => super::print(&format!("{}\n", run.display())),
        false => Ok(()),
    }
}
