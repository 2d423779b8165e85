//! `rdpm bench`: how fast this machine trains, samples, codes images, computes their features and
//! loads them, and how fast single GPU kernels are, with the FLOP and bytes of the work.

#[cfg(feature = "cuda")]
mod clock;
mod codec;
mod inception;
#[cfg(feature = "cuda")]
mod kernels;
mod loader;
mod measured;
mod ops;
mod peak;
mod pixels;
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
use crate::telemetry::{Rates, Work};

/// Time training, sampling or single kernels with random weights and latents, or the loader
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    work: Option<What>,
    #[command(flatten)]
    train_gen: train_gen::Args,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    TrainGen(train_gen::Args),
    TrainVae(train_vae::Args),
    Sample(sample::Args),
    /// Time the tokenizer's encoder: pixels to latents
    Encode(codec::Args),
    /// Time the tokenizer's decoder: latents to pixels
    Decode(codec::Args),
    Pixels(pixels::Args),
    Inception(inception::Args),
    Ops(ops::Args),
    Loader(loader::Args),
    Peak(peak::Args),
}

const CLASSES: usize = 1000;

pub fn run(args: &Args, context: &Context) -> Result<()> {
    match &args.work {
        None => train_gen::run(&args.train_gen, context),
        Some(What::TrainGen(args)) => train_gen::run(args, context),
        Some(What::TrainVae(args)) => train_vae::run(args, context),
        Some(What::Sample(args)) => sample::run(args, context),
        Some(What::Encode(args)) => codec::run(codec::Half::Encoder, args, context),
        Some(What::Decode(args)) => codec::run(codec::Half::Decoder, args, context),
        Some(What::Pixels(args)) => pixels::run(args, context),
        Some(What::Inception(args)) => inception::run(args, context),
        Some(What::Ops(args)) => ops::run(args, context),
        Some(What::Loader(args)) => loader::run(args, context),
        Some(What::Peak(args)) => peak::run(args),
    }
}

/// The default model with `depth` blocks over a latent map of side².
fn config(depth: u16, side: u16) -> Config {
    let mut config = Config::default();
    let halvings = config.tokenizer.ch_mult.len() as u32 - 1;
    config.data.image_size = usize::from(side) << halvings;
    config.generator.depth = depth.into();
    config
}

/// FLOP of a forward pass per image; a multiply-add counts as two.
fn flop(config: &Config) -> f64 {
    let c = config.generator.width() as f64;
    let (n, f) = (config.tokens() as f64, swiglu_width(c as usize) as f64);
    let block = 2.0 * n * (4.0 * c * c + 3.0 * c * f) + 4.0 * n * n * c + 12.0 * c * c;
    config.generator.depth as f64 * block + head_flop(config)
}

/// The head's share of [`flop`].
fn head_flop(config: &Config) -> f64 {
    2.0 * (config.tokens() * config.generator.width() * config.quantizer.codebook_size) as f64
}

/// A measured time compared with the best rate of the CPU's threads. On a GPU the caller prints
/// measured ceilings instead.
struct Judged {
    told: String,
    rates: Option<Rates>,
}

impl Judged {
    /// `milliseconds`: the fastest run.
    fn new(device: &Device, name: &str, flop: f64, milliseconds: f64) -> Self {
        let mut rates = device.is_cpu().then(Rates::measure);
        let told = rates.as_mut().map(|rates| {
            let told = rates.of(name, Work::Flop(flop), milliseconds / 1e3);
            format!(", the fastest {told}")
        });
        Self {
            told: told.unwrap_or_default(),
            rates,
        }
    }

    /// Errors: the time implies a rate above what the machine can do.
    fn verdict(self) -> Result<()> {
        self.rates.map_or(Ok(()), Rates::verdict)
    }
}

/// A generator whose zero-initialised weights are small random numbers: matmuls with zeros can run
/// faster than with other data.
fn generator(config: &Config) -> Result<(Generator, Params)> {
    let scope = Scope::init(1, &Device::Cpu);
    let generator = Generator::new(config, CLASSES, &scope)?;
    let params = scope.finish();
    random_weights(&params)?;
    Ok((generator, params))
}

/// Small random numbers in place of parameters that are all zero.
fn random_weights(params: &Params) -> Result<()> {
    for (i, (_, var)) in params.iter().enumerate() {
        if var.as_tensor().abs()?.max_all()?.to_scalar::<f32>()? == 0.0 {
            let values = normal(2, Purpose::Init, &[i as u64], 0, var.dims(), &Device::Cpu)?;
            var.set(&(values.squeeze(0)? * 0.02)?)?;
        }
    }
    Ok(())
}

/// Median, minimum and maximum.
fn spread(milliseconds: &[f64]) -> [f64; 3] {
    let mut sorted = milliseconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    [
        sorted[sorted.len() / 2],
        sorted[0],
        sorted[sorted.len() - 1],
    ]
}
