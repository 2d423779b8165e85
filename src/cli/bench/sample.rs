//! `rdpm bench sample`: transformer, head and code sampling for all T steps, without the decoder.

use std::time::Instant;

use candle_core::Device;
use serde_json::json;

use super::{CLASSES, Judged, config, flop, generator, head_flop, spread};
use crate::cli::{Context, print};
use crate::config::Config;
use crate::error::Result;
use crate::model::{Generator, Tokenizer};
use crate::sample::{Draws, SampleOptions, Sampler};
use crate::store::Scope;

/// Time sampling: all steps of a batch, with guidance, without the decoder
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Blocks of the generator; its width is 64 times the depth
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=32))]
    depth: u16,
    /// Images per batch
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Side of the latent map; 16 makes 256 tokens
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=64))]
    side: u16,
    /// Number of timed runs
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// Guidance: the paper's λ, rising from 0 at the first step; 0 is off
    #[arg(long, default_value_t = 4.0)]
    cfg: f64,
    /// Print a JSON line
    #[arg(long)]
    json: bool,
}

/// Times of the runs in milliseconds, the device, and on a GPU the lower bound by its measured
/// ceilings.
struct Timing {
    milliseconds: Vec<f64>,
    device: String,
    floor: Option<f64>,
}

pub fn run(args: &Args, context: &Context) -> Result<()> {
    let config = config(args.depth, args.side);
    let options = SampleOptions {
        cfg: args.cfg,
        ..SampleOptions::from(&config.sample)
    };
    let device = context.device()?;
    let timing = match &device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => on_gpu(args, &config, &options, cuda)?,
        _ => on_cpu(args, &config, &options, context)?,
    };
    let [median, least, most] = spread(&timing.milliseconds);
    let flop = work(args.batch_size, &config, &options, &device);
    let (images, teraflops) = (
        f64::from(args.batch_size) / median * 1e3,
        flop / median / 1e9,
    );
    let judged = Judged::new(&device, "sample", flop, least);
    if args.json {
        let line = json!({
            "work": "sample", "depth": args.depth, "batch_size": args.batch_size, "tokens": config.tokens(), "cfg": args.cfg,
            "ms": median, "ms_least": least, "ms_most": most, "images_per_second": images,
            "teraflop_per_second": teraflops, "ms_floor": timing.floor, "device": timing.device,
        });
        print(&format!("{line}\n"))?;
        return judged.verdict();
    }
    let share = timing.floor.map_or(String::new(), |floor| {
        format!(
            ", {:.0} % of the ceiling ({floor:.2} ms)",
            100.0 * floor / median
        )
    });
    print(&format!(
        "sample, depth {}, {} images of {} tokens, guidance {}, on {}: median {median:.2} ms ({least:.2} to {most:.2}), \
         {images:.2} images/s, {teraflops:.3} TFLOP/s{share}{}\n",
        args.depth,
        args.batch_size,
        config.tokens(),
        args.cfg,
        timing.device,
        judged.told
    ))?;
    judged.verdict()
}

/// FLOP of all steps: two passes where λ_t is not 0. On a CPU the head runs once for both, and the
/// first block's q, k and v are computed from the 2d inputs.
pub(super) fn work(batch: u32, config: &Config, options: &SampleOptions, device: &Device) -> f64 {
    let (pass, head) = match device.is_cpu() {
        true => (flop(config) - spared(config), head_flop(config)),
        false => (flop(config), 0.0),
    };
    let steps = config.quantizer.steps;
    let of_step = |t| match options.guided(t, steps) {
        true => 2.0 * pass - head,
        false => pass,
    };
    f64::from(batch) * (1..=steps).map(of_step).sum::<f64>()
}

/// FLOP that a pass does not spend on the first block's q, k and v: 2d terms each instead of C.
fn spared(config: &Config) -> f64 {
    let (c, inputs) = (config.generator.width(), 2 * config.tokenizer.embed_dim);
    (2 * config.tokens() * 3 * c) as f64 * (c as f64 - inputs as f64)
}

pub(super) fn labels(batch: u32) -> (Vec<u32>, Vec<u64>) {
    let numbers = 0..batch;
    (
        numbers.clone().map(|i| i * 37 % CLASSES as u32).collect(),
        numbers.map(u64::from).collect(),
    )
}

fn on_cpu(
    args: &Args,
    config: &Config,
    options: &SampleOptions,
    context: &Context,
) -> Result<Timing> {
    let (_, params) = generator(config)?;
    let scope = Scope::load(&params.tensors(), &Device::Cpu).frozen();
    let generator = Generator::new(config, CLASSES, &scope)?;
    let tokenizer = Tokenizer::new(config, &Scope::init(2, &Device::Cpu))?;
    let sampler = Sampler::new(&generator, &tokenizer, config, CLASSES);
    let (labels, indices) = labels(args.batch_size);
    let draws = Draws::Seeded {
        seed: 1,
        indices: &indices,
    };
    let milliseconds = (0..args.repeats)
        .map(|_| {
            let begin = Instant::now();
            sampler.latents(&labels, &draws, options)?;
            Ok(begin.elapsed().as_secs_f64() * 1e3)
        })
        .collect::<Result<_>>()?;
    Ok(Timing {
        milliseconds,
        device: format!("{} CPU threads", context.threads),
        floor: None,
    })
}

#[cfg(feature = "cuda")]
fn on_gpu(
    args: &Args,
    config: &Config,
    options: &SampleOptions,
    cuda: &candle_core::CudaDevice,
) -> Result<Timing> {
    use super::clock::{Ceilings, times};
    use crate::model::Quantizer;
    use crate::ops::cuda::Gpu;
    use crate::sample::gpu::GpuSampler;
    use std::sync::Arc;

    let gpu = Arc::new(Gpu::new(cuda)?);
    let ceilings = Ceilings::measure(&gpu)?;
    let (_, params) = generator(config)?;
    let d = config.tokenizer.embed_dim;
    let quantizer = Quantizer::new(
        &config.quantizer,
        &config.schedule,
        d,
        &Scope::init(2, &Device::Cpu),
    )?;
    let tensors = params.tensors();
    let sampler = GpuSampler::new(gpu.clone(), config, CLASSES, &tensors, &quantizer)?;
    let (labels, indices) = labels(args.batch_size);
    sampler.latents(&labels, 1, &indices, options)?;
    let milliseconds = times(&gpu, args.repeats as usize, || sampler.repeat())?;
    // Per step, at least all weights of the blocks and the head are read.
    let bytes = config.quantizer.steps as f64 * 2.0 * weights(config);
    Ok(Timing {
        milliseconds,
        device: gpu.description()?,
        floor: Some(ceilings.floor(
            work(
                args.batch_size,
                config,
                options,
                &Device::Cuda(cuda.clone()),
            ),
            bytes,
        )),
    })
}

/// Number of matmul weights in the blocks and the head.
#[cfg(feature = "cuda")]
fn weights(config: &Config) -> f64 {
    let c = config.generator.width();
    let f = crate::model::generator::swiglu_width(c);
    (config.generator.depth * (4 * c * c + 3 * c * f) + c * config.quantizer.codebook_size) as f64
}
