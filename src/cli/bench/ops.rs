//! `rdpm bench ops`: every kernel of the GPU's generator at the size of a training step, against this card's ceilings.

use crate::cli::Context;
use crate::error::Result;

/// Time the GPU's kernels one by one
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The generator's depth, whose width is 64 times that
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=32))]
    pub depth: u16,
    /// Images; half of them stand for the unconditional ones where guidance is timed
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..))]
    pub batch_size: u32,
    /// Side of the latent map; 16 makes 256 tokens
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub side: u16,
    /// Runs timed
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeats: u32,
    /// Only kernels whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub only: String,
    /// Print a JSON line a kernel
    #[arg(long)]
    pub json: bool,
}

#[cfg(not(feature = "cuda"))]
pub fn run(_: &Args, _: &Context) -> Result<()> {
    Err(crate::error::usage(
        "bench ops times the GPU's kernels: there are none in this binary",
        "build it with `cargo build --release --features cuda`; the CPU's operations are timed by `cargo bench --bench ops`",
    ))
}

#[cfg(feature = "cuda")]
pub fn run(args: &Args, context: &Context) -> Result<()> {
    match context.device()? {
        candle_core::Device::Cuda(cuda) => super::kernels::run(args, &cuda),
        _ => Err(crate::error::usage(
            "--device cpu: bench ops times the GPU's kernels",
            "leave it out; the CPU's operations are timed by `cargo bench --bench ops`",
        )),
    }
}
