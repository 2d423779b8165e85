//! `rdpm bench train-vae`: the tokenizer's training step with random weights and images.

use std::collections::BTreeMap;
use std::time::Instant;

use candle_core::{Device, Tensor};
use serde_json::json;

use super::spread;
use crate::cli::{Context, print};
use crate::config::{ComputeType, Config};
use crate::data::loader::Batch;
use crate::error::{Result, usage};
use crate::model::perceptual::{Lpips, WIDTHS};
use crate::ops::flop;
use crate::rng::{Purpose, normal};
use crate::store::{Init, Scope};
use crate::train::stage::Step;
use crate::train::vae::{Parts, VaeStage};
use crate::world::World;

/// Time the tokenizer's training step: LPIPS, discriminator, adaptive weight and moving average in
/// every step
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
    /// Images per step
    #[arg(long, default_value_t = 32)]
    batch_size: usize,
    /// Strided layers of the discriminator; 0 trains without a discriminator
    #[arg(long, default_value_t = 3)]
    disc_layers: usize,
    /// Train without LPIPS
    #[arg(long)]
    no_lpips: bool,
    /// Compute in f32 instead of bf16, on a GPU
    #[arg(long)]
    f32: bool,
    /// Recompute the residual blocks of this many of the largest resolutions in the backward pass
    #[arg(long, value_name = "LEVELS", default_value_t = 0)]
    recompute_levels: usize,
    /// Number of timed steps, after three warm-up steps
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Print a JSON line
    #[arg(long)]
    json: bool,
}

const WARM_UP: u32 = 3;

pub fn run(args: &Args, context: &Context) -> Result<()> {
    let device = context.device()?;
    let config = config(args, &device);
    let levels = args.ch_mult.len();
    if args.recompute_levels > levels {
        return Err(usage(
            format!(
                "--recompute-levels {}: the tokenizer has {levels}",
                args.recompute_levels
            ),
            format!("at most {levels}"),
        ));
    }
    let mut stage = stage(args, &config, &device)?;
    let train = &config.train_vae;
    let (mut milliseconds, mut executed, mut loss) = (Vec::new(), 0.0, None);
    for step in 0..WARM_UP + args.steps {
        device.synchronize()?;
        let (begin, before) = (Instant::now(), flop::executed());
        let metrics = stage.step(&World::alone(), train, step.into(), 1 << 20)?;
        device.synchronize()?;
        milliseconds.push(begin.elapsed().as_secs_f64() * 1e3);
        executed = flop::executed() - before;
        loss = metrics.mean("loss");
    }
    milliseconds.drain(..WARM_UP as usize);
    let [median, least, most] = spread(&milliseconds);
    let images = args.batch_size as f64 / median * 1e3;
    let teraflops = executed / median / 1e9;
    let gib = memory(&device)?;
    let place = match &device {
        Device::Cpu => format!("{} CPU threads", context.threads),
        _ => description(&device)?,
    };
    if args.json {
        let line = json!({
            "work": "train-vae step", "size": args.image_size, "ch": args.ch, "batch_size": args.batch_size,
            "disc_layers": args.disc_layers, "lpips": !args.no_lpips, "compute_type": train.compute_type,
            "recompute_levels": args.recompute_levels,
            "ms": median, "ms_least": least, "ms_most": most, "images_per_second": images,
            "teraflop_per_second": teraflops, "gib": gib, "loss": loss, "device": place,
        });
        return print(&format!("{line}\n"));
    }
    let memory = gib.map_or(String::new(), |gib| format!(", peak memory {gib:.1} GiB"));
    print(&format!(
        "train-vae step, {} images of {}×{}, {} channels, on {place}: median {median:.2} ms ({least:.2} to {most:.2}), \
         {images:.0} images/s, {teraflops:.1} TFLOP/s of matmuls executed{memory}\n",
        args.batch_size, args.image_size, args.image_size, args.ch
    ))
}

fn config(args: &Args, device: &Device) -> Config {
    let mut config = Config::default();
    config.data.image_size = args.image_size;
    config.tokenizer.ch = args.ch;
    config.tokenizer.ch_mult = args.ch_mult.clone();
    config.loss.disc_start = 0;
    config.loss.disc_layers = args.disc_layers.max(1);
    if args.disc_layers == 0 {
        config.loss.disc_weight = 0.0;
    }
    config.train_vae.batch_size = args.batch_size;
    config.train_vae.recompute_levels = args.recompute_levels;
    config.train_vae.compute_type = if device.is_cpu() || args.f32 {
        ComputeType::F32
    } else {
        ComputeType::Bf16
    };
    config
}

fn stage(args: &Args, config: &Config, device: &Device) -> Result<VaeStage> {
    let shape = [args.image_size, args.image_size, 3];
    let indices: Vec<u64> = (0..args.batch_size as u64).collect();
    let images = normal(1, Purpose::Noise, &indices, 1, &shape, &Device::Cpu)?;
    let images = (images * 0.5)?.clamp(-1f32, 1f32)?;
    let there = images.to_device(device)?;
    let batches = (0u64..).map(move |step| {
        let first = step * indices.len() as u64;
        Ok(Batch {
            images: there.clone(),
            labels: vec![0; indices.len()],
            indices: indices.iter().map(|i| first + i).collect(),
            names: vec![String::new(); indices.len()],
        })
    });
    let lpips = match args.no_lpips {
        true => None,
        false => Some(random_lpips(device)?),
    };
    VaeStage::new(Parts {
        config: config.clone(),
        seed: 1,
        device: device.clone(),
        batches: Box::new(batches),
        validation: images.narrow(0, 0, 1)?,
        lpips,
    })
}

/// LPIPS with random weights of VGG16's shapes, scaled so that activations keep their magnitude
/// from layer to layer.
fn random_lpips(device: &Device) -> Result<Lpips> {
    let (vgg, heads) = (Scope::init(2, device), Scope::init(3, device));
    for (at, shape) in Lpips::convolutions(&WIDTHS) {
        let scope = vgg.push("features").push(at);
        let std = (2.0 / (shape[1] * 9) as f64).sqrt();
        scope.get("weight", &shape[..], Init::Normal { mean: 0.0, std })?;
        scope.get("bias", shape[0], Init::Zeros)?;
    }
    for (k, &c) in WIDTHS.iter().enumerate() {
        let scope = heads.push(format!("lin{k}")).push("model").push(1);
        scope.get("weight", (1, c, 1, 1), Init::Ones)?;
    }
    let [vgg, heads]: [BTreeMap<String, Tensor>; 2] = [vgg, heads].map(|s| s.finish().tensors());
    Ok(Lpips::new(&WIDTHS, &vgg, &heads, device)?)
}

#[cfg(feature = "cuda")]
fn memory(device: &Device) -> Result<Option<f64>> {
    use crate::ops::cuda::Gpu;
    match device {
        Device::Cuda(cuda) => {
            let bytes = Gpu::of(cuda)?.peak_memory()?;
            Ok(Some(bytes as f64 / f64::from(1 << 30)))
        }
        _ => Ok(None),
    }
}

#[cfg(not(feature = "cuda"))]
fn memory(_: &Device) -> Result<Option<f64>> {
    Ok(None)
}

#[cfg(feature = "cuda")]
fn description(device: &Device) -> Result<String> {
    use crate::ops::cuda::Gpu;
    Ok(Gpu::of(device.as_cuda_device()?)?.description()?)
}

#[cfg(not(feature = "cuda"))]
fn description(device: &Device) -> Result<String> {
    Ok(format!("{device:?}"))
}
