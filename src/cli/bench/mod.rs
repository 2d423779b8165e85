//! `rdpm bench`: how fast this machine trains and samples with a generator, and the GPU's kernels one by one, with the work's FLOP and bytes.

#[cfg(feature = "cuda")]
mod clock;
#[cfg(feature = "cuda")]
mod kernels;
mod ops;
mod sample;
mod train_gen;
mod train_vae;

use candle_core::Device;

use super::Context;
use crate::config::Config;
use crate::error::Result;
use crate::model::generator::{Generator, swiglu_width};
use crate::rng::{Purpose, normal};
use crate::store::{Params, Scope};

/// Time training, sampling or single kernels with random weights and latents
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    work: Option<Work>,
    #[command(flatten)]
    train_gen: train_gen::Args,
}

#[derive(Debug, clap::Subcommand)]
enum Work {
    TrainGen(train_gen::Args),
    TrainVae(train_vae::Args),
    Sample(sample::Args),
    Ops(ops::Args),
}

const CLASSES: usize = 1000;

pub fn run(args: &Args, context: &Context) -> Result<()> {
    match &args.work {
        None => train_gen::run(&args.train_gen, context),
        Some(Work::TrainGen(args)) => train_gen::run(args, context),
        Some(Work::TrainVae(args)) => train_vae::run(args, context),
        Some(Work::Sample(args)) => sample::run(args, context),
        Some(Work::Ops(args)) => ops::run(args, context),
    }
}

/// The default model with `depth` blocks over a map of side².
fn config(depth: u16, side: u16) -> Config {
    let mut config = Config::default();
    let halvings = config.tokenizer.ch_mult.len() as u32 - 1;
    config.data.image_size = usize::from(side) << halvings;
    config.generator.depth = depth.into();
    config
}

/// FLOP of a forward pass an image, a multiply-add counted as two.
fn flop(config: &Config) -> f64 {
    let c = config.generator.width() as f64;
    let (n, f) = (config.tokens() as f64, swiglu_width(c as usize) as f64);
    let block = 2.0 * n * (4.0 * c * c + 3.0 * c * f) + 4.0 * n * n * c + 12.0 * c * c;
    config.generator.depth as f64 * block + 2.0 * n * c * config.quantizer.codebook_size as f64
}

/// A generator whose zeros are small random numbers: a product with zeros can be faster than with anything else.
fn generator(config: &Config) -> Result<(Generator, Params)> {
    let scope = Scope::init(1, &Device::Cpu);
    let generator = Generator::new(config, CLASSES, &scope)?;
    let params = scope.finish();
    for (i, (_, var)) in params.iter().enumerate() {
        if var.as_tensor().abs()?.max_all()?.to_scalar::<f32>()? == 0.0 {
            let values = normal(2, Purpose::Init, &[i as u64], 0, var.dims(), &Device::Cpu)?;
            var.set(&(values.squeeze(0)? * 0.02)?)?;
        }
    }
    Ok((generator, params))
}

/// Median, least and most.
fn spread(milliseconds: &[f64]) -> [f64; 3] {
    let mut sorted = milliseconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    [
        sorted[sorted.len() / 2],
        sorted[0],
        sorted[sorted.len() - 1],
    ]
}
