//! `rdpm bench encode` and `rdpm bench decode`: the tokenizer's encoder and decoder with random
//! weights, in bf16 on a GPU.

use candle_core::{Device, Tensor};
use serde_json::json;

use super::measured::Measured;
use super::random_weights;
use crate::cli::{Context, print};
use crate::config::Config;
use crate::error::Result;
use crate::model::Tokenizer;
use crate::rng::{Purpose, normal};
use crate::store::Scope;

/// Time the tokenizer's encoder or decoder: pixels to latents, or latents to pixels
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Height and width of the images
    #[arg(long, default_value_t = 256)]
    image_size: usize,
    /// Channels of the first level
    #[arg(long, default_value_t = 128)]
    ch: usize,
    /// Channel multiplier of each level; each level but the last halves the map
    #[arg(long, value_delimiter = ',', default_values_t = [1, 1, 2, 2, 4])]
    ch_mult: Vec<usize>,
    /// Images per batch
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Compute in f32 instead of bf16, on a GPU
    #[arg(long)]
    f32: bool,
    /// Number of timed runs
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// Print a JSON line
    #[arg(long)]
    json: bool,
}

/// Which half of the tokenizer.
#[derive(Clone, Copy)]
pub enum Half {
    Encoder,
    Decoder,
}

pub fn run(half: Half, args: &Args, context: &Context) -> Result<()> {
    let mut config = Config::default();
    config.data.image_size = args.image_size;
    config.tokenizer.ch = args.ch;
    config.tokenizer.ch_mult = args.ch_mult.clone();
    let device = context.device()?;
    let tokenizer = tokenizer(&config, args.f32, &device)?;
    let (side, d) = (config.grid(), config.tokenizer.embed_dim);
    let random = |shape: &[usize]| -> Result<Tensor> {
        let images: Vec<u64> = (0..u64::from(args.batch_size)).collect();
        let values = normal(1, Purpose::Noise, &images, 1, shape, &Device::Cpu)?;
        Ok(values.to_device(&device)?)
    };
    let (name, x) = match half {
        Half::Encoder => ("encode", random(&[args.image_size, args.image_size, 3])?),
        Half::Decoder => ("decode", random(&[side, side, d])?),
    };
    let measured = Measured::of((&device, context), name, args.repeats, || {
        match half {
            Half::Encoder => tokenizer.encode(&x)?,
            Half::Decoder => tokenizer.decode(&x)?,
        };
        Ok(())
    })?;
    let batch = args.batch_size as usize;
    let sizes =
        json!({ "size": args.image_size, "ch": args.ch, "batch_size": batch, "f32": args.f32 });
    print(&match args.json {
        true => measured.line(sizes),
        false => {
            let (size, ch) = (args.image_size, args.ch);
            let sizes = format!("{batch} images of {size}×{size}, {ch} channels");
            measured.sentence(&sizes, batch)
        }
    })?;
    measured.verdict()
}

/// A tokenizer for inference with random weights.
pub fn tokenizer(config: &Config, f32: bool, device: &Device) -> Result<Tokenizer> {
    let scope = Scope::init(2, &Device::Cpu);
    Tokenizer::new(config, &scope)?;
    let params = scope.finish();
    random_weights(&params)?;
    let scope = Scope::load(&params.tensors(), device).frozen();
    let tokenizer = Tokenizer::new(config, &scope)?;
    Ok(match f32 {
        true => tokenizer,
        false => tokenizer.for_inference(device),
    })
}
