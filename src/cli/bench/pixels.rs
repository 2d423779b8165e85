//! `rdpm bench pixels`: whole sampling, from labels to 8-bit pixels, with random weights.

use candle_core::Device;
use serde_json::json;

use super::measured::Measured;
use super::{CLASSES, codec, config, generator, sample};
use crate::cli::{Context, print};
use crate::config::Config;
use crate::error::Result;
use crate::model::{Generator, Tokenizer};
use crate::sample::{LatentDecoder, SampleOptions};
use crate::store::{Params, Scope};

/// Time whole sampling: all steps of a batch, with guidance, and the decoder; on a GPU until the
/// bytes are there, without their way to the host
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Blocks of the generator; its width is 64 times the depth
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=32))]
    depth: u16,
    /// Images per batch
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=64))]
    batch_size: u32,
    /// Side of the latent map; 16 makes 256 tokens and images of 256×256
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

pub fn run(args: &Args, context: &Context) -> Result<()> {
    let config = config(args.depth, args.side);
    let options = SampleOptions {
        cfg: args.cfg,
        ..SampleOptions::from(&config.sample)
    };
    let device = context.device()?;
    let (_, params) = generator(&config)?;
    let tokenizer = codec::tokenizer(&config, false, &device)?;
    let sampling = Sampling {
        args,
        config: &config,
        options: &options,
        params: &params,
        tokenizer: &tokenizer,
    };
    let measured = match &device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => sampling.on_gpu((&device, context), cuda)?,
        _ => sampling.on_cpu((&device, context))?,
    };
    let batch = args.batch_size as usize;
    print(&match args.json {
        true => {
            let sizes = json!({
                "depth": args.depth, "batch_size": batch, "tokens": config.tokens(), "cfg": args.cfg,
            });
            measured.line(sizes)
        }
        false => {
            let (depth, size) = (args.depth, config.data.image_size);
            let sizes = format!("depth {depth}, {batch} images of {size}×{size}");
            measured.sentence(&sizes, batch)
        }
    })?;
    measured.verdict()
}

const NAME: &str = "sample to pixels";

/// What is sampled.
struct Sampling<'a> {
    args: &'a Args,
    config: &'a Config,
    options: &'a SampleOptions,
    params: &'a Params,
    tokenizer: &'a Tokenizer,
}

impl Sampling<'_> {
    fn flop(&self, device: &Device, decoding: f64) -> f64 {
        let batch = self.args.batch_size;
        sample::work(batch, self.config, self.options, device) + decoding
    }

    fn on_cpu(&self, place: (&Device, &Context)) -> Result<Measured> {
        use crate::ops::flop;
        use crate::sample::{Draws, Sampler};
        let scope = Scope::load(&self.params.tensors(), &Device::Cpu).frozen();
        let generator = Generator::new(self.config, CLASSES, &scope)?;
        let sampler = Sampler::new(&generator, self.tokenizer, self.config, CLASSES);
        let decoder = LatentDecoder::new(self.tokenizer);
        let (labels, indices) = sample::labels(self.args.batch_size);
        let draws = Draws::Seeded {
            seed: 1,
            indices: &indices,
        };
        let images = || -> Result<f64> {
            let z = sampler.latent(&labels, &draws, self.options)?;
            let before = flop::executed();
            decoder.images(&z, |i| format!("image {i}"))?;
            Ok(flop::executed() - before)
        };
        let flop = self.flop(place.0, images()?);
        Measured::of_flop(place, NAME, self.args.repeats, flop, || match images() {
            Ok(_) => Ok(()),
            Err(e) => Err(candle_core::Error::msg(format!("{e:#}"))),
        })
    }

    #[cfg(feature = "cuda")]
    fn on_gpu(
        &self,
        place: (&Device, &Context),
        cuda: &candle_core::CudaDevice,
    ) -> Result<Measured> {
        use crate::model::Quantizer;
        use crate::ops::cuda::Gpu;
        use crate::ops::flop;
        use crate::sample::gpu::GpuSampler;

        let config = self.config;
        let d = config.tokenizer.embed_dim;
        let scope = Scope::init(2, &Device::Cpu);
        let quantizer = Quantizer::new(&config.quantizer, &config.schedule, d, &scope)?;
        let tensors = self.params.tensors();
        let gpu = Gpu::of(cuda)?;
        let sampler = GpuSampler::new(gpu, config, CLASSES, &tensors, &quantizer)?;
        let decoder = LatentDecoder::new(self.tokenizer);
        let (labels, indices) = sample::labels(self.args.batch_size);
        let z = sampler.latent(&labels, 1, &indices, self.options)?;
        let before = flop::executed();
        self.tokenizer.pixel_map(&z)?;
        let flop = self.flop(place.0, flop::executed() - before);
        decoder.images(&z, |i| format!("image {i}"))?;
        Measured::of_flop(place, NAME, self.args.repeats, flop, || {
            decoder.launch(&sampler.repeat_latent(labels.len())?)
        })
    }
}
