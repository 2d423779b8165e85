//! `rdpm bench train-gen`: the generator's training step.

use std::time::Instant;

use candle_core::{Device, Tensor};
use serde_json::json;

use super::{CLASSES, Judged, config, flop, generator, spread};
use crate::cli::{Context, print};
use crate::config::Config;
use crate::error::{Result, usage};
use crate::rng::{Purpose, normal};

/// Time the generator's training step (the default)
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Blocks of the generator; its width is 64 times the depth
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=32))]
    depth: u16,
    /// Images per step
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Side of the latent map; 16 makes 256 tokens
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=64))]
    side: u16,
    /// Number of timed steps, after five warm-up steps
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Recompute the activations of this many first blocks in the backward pass, on a GPU
    #[arg(long, default_value_t = 0, value_name = "BLOCKS")]
    recompute_blocks: usize,
    /// Print a JSON line
    #[arg(long)]
    json: bool,
}

const WARM_UP: u32 = 5;

/// Milliseconds per step, final loss per token, the device, and on a GPU the peak memory in use.
struct Timing {
    milliseconds: Vec<f64>,
    loss: f64,
    device: String,
    gib: Option<f64>,
}

pub fn run(args: &Args, context: &Context) -> Result<()> {
    let mut config = config(args.depth, args.side);
    config.train_gen.recompute_blocks = args.recompute_blocks;
    let device = context.device()?;
    if args.recompute_blocks > config.generator.depth
        || (args.recompute_blocks > 0 && device.is_cpu())
    {
        return Err(usage(
            format!("--recompute-blocks {}", args.recompute_blocks),
            format!("at most the depth, {}, and 0 on a CPU", args.depth),
        ));
    }
    let timing = match &device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => on_gpu(args, &config, cuda)?,
        _ => on_cpu(args, &config, context)?,
    };
    let [median, least, most] = spread(&timing.milliseconds);
    let images = f64::from(args.batch_size) / median * 1e3;
    let flop = 3.0 * flop(&config) * f64::from(args.batch_size);
    let teraflops = flop / median / 1e9;
    let judged = Judged::new(&device, "train-gen step", flop, least);
    let tokens = u32::from(args.side).pow(2);
    if args.json {
        let line = json!({
            "work": "train-gen step", "depth": args.depth, "batch_size": args.batch_size, "tokens": tokens, "recompute_blocks": args.recompute_blocks,
            "ms": median, "ms_least": least, "ms_most": most, "images_per_second": images,
            "teraflop_per_second": teraflops, "gib": timing.gib, "loss": timing.loss, "device": timing.device,
        });
        print(&format!("{line}\n"))?;
        return judged.verdict();
    }
    let memory = timing
        .gib
        .map_or(String::new(), |gib| format!(", peak memory {gib:.1} GiB"));
    print(&format!(
        "train-gen step, depth {}, {} images of {tokens} tokens, on {}: median {median:.2} ms ({least:.2} to {most:.2}), \
         {images:.1} images/s, {teraflops:.3} TFLOP/s{memory}{}\n",
        args.depth, args.batch_size, timing.device, judged.told
    ))?;
    judged.verdict()
}

/// Deterministic t, labels and example numbers of a step.
fn examples(args: &Args, config: &Config, step: u32) -> (Vec<u32>, Vec<u32>, Vec<u64>) {
    let (b, t) = (args.batch_size, config.quantizer.steps as u32);
    let first = u64::from(step) * u64::from(b);
    (
        (0..b).map(|i| 1 + (i + step) % t).collect(),
        (0..b)
            .map(|i| (i * 37 + step) % (CLASSES as u32 + 1))
            .collect(),
        (0..u64::from(b)).map(|i| first + i).collect(),
    )
}

fn random(seed: u64, images: u32, map: &[usize]) -> Result<Tensor> {
    let indices: Vec<u64> = (0..images.into()).collect();
    Ok(normal(
        seed,
        Purpose::Noise,
        &indices,
        1,
        map,
        &Device::Cpu,
    )?)
}

fn on_cpu(args: &Args, config: &Config, context: &Context) -> Result<Timing> {
    use crate::ops::{Tape, arrange, cross_entropy};
    use crate::train::grads::gradients;
    use crate::train::optimizer::Optimizer;

    let (model, params) = generator(config)?;
    let mut optimizer = Optimizer::new(params, &config.train_gen, true)?;
    let side = usize::from(args.side);
    let map = [side, side, config.tokenizer.embed_dim];
    let (noise, sum) = (
        random(3, args.batch_size, &map)?,
        random(4, args.batch_size, &map)?,
    );
    let codes: Vec<u32> = (0..args.batch_size * (side * side) as u32)
        .map(|i| i.wrapping_mul(2_654_435) % config.quantizer.codebook_size as u32)
        .collect();
    let codes = Tensor::new(codes, &Device::Cpu)?;
    let (mut milliseconds, mut loss) = (Vec::new(), 0.0);
    for step in 0..WARM_UP + args.steps {
        let (t, labels, _) = examples(args, config, step);
        let begin = Instant::now();
        let tape = Tape::start();
        let condition = model.condition(
            &Tensor::new(labels, &Device::Cpu)?,
            &Tensor::new(t, &Device::Cpu)?,
        )?;
        let logits = model.forward(&noise, &sum, &condition)?;
        let logits = arrange::reshape(&logits, ((), logits.dim(2)?))?;
        let mean = arrange::mean(&cross_entropy(&logits, &codes)?.loss)?;
        loss = f64::from(mean.to_scalar::<f32>()?);
        drop((condition, logits));
        let gradients = gradients(tape.backward(mean)?, optimizer.trained())?;
        optimizer.update(&gradients, 1e-4, 1.0)?;
        milliseconds.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    milliseconds.drain(..WARM_UP as usize);
    let device = format!("{} CPU threads", context.threads);
    Ok(Timing {
        milliseconds,
        loss,
        device,
        gib: None,
    })
}

#[cfg(feature = "cuda")]
fn on_gpu(args: &Args, config: &Config, cuda: &candle_core::CudaDevice) -> Result<Timing> {
    use crate::ops::cuda::{Buffer, Gpu};
    use crate::ops::quantize::{Codebook, Schedule};
    use crate::train::gpu::{GpuTrainer, MicroBatch};
    use std::sync::Arc;

    let gpu = Arc::new(Gpu::new(cuda)?);
    let (_, params) = generator(config)?;
    let (d, k) = (config.tokenizer.embed_dim, config.quantizer.codebook_size);
    let small = |seed, shape: &[usize], std: f64| -> Result<Tensor> {
        Ok((normal(seed, Purpose::Init, &[0], 0, shape, &Device::Cpu)?.squeeze(0)? * std)?)
    };
    let codebook = Codebook {
        embedding: small(5, &[k, d], config.quantizer.init_std)?,
        bias: Some((small(6, &[d, d, 3, 3], 0.02)?, small(7, &[d], 0.02)?)),
    };
    let schedule = Schedule::new(&config.schedule, config.quantizer.steps);
    let batch = args.batch_size as usize;
    let mut trainer = GpuTrainer::new(&gpu, config, CLASSES, batch, &codebook, &schedule, 7)?;
    trainer.load(&params.tensors())?;
    let side = usize::from(args.side);
    let latents = random(4, args.batch_size, &[side, side, d])?;
    let latents = Buffer::from_host(&gpu, &latents.flatten_all()?.to_vec1::<f32>()?)?;
    let mut milliseconds = Vec::new();
    for step in 0..WARM_UP + args.steps {
        let (t, labels, indices) = examples(args, config, step);
        gpu.synchronize()?;
        let begin = Instant::now();
        let examples = MicroBatch {
            t: &t,
            labels: &labels,
            indices: &indices,
        };
        trainer.compute(latents.view(), examples, true, 1)?;
        trainer.update(1e-4)?;
        gpu.synchronize()?;
        milliseconds.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    milliseconds.drain(..WARM_UP as usize);
    let tally = trainer.take_tally()?;
    let (tokens, loss) = tally
        .iter()
        .fold((0.0, 0.0), |(n, sum), t| (n + t.tokens, sum + t.loss));
    Ok(Timing {
        milliseconds,
        loss: loss / tokens,
        device: gpu.description()?,
        gib: Some(gpu.peak_memory()? as f64 / f64::from(1 << 30)),
    })
}
