//! `rdpm bench ops`: every GPU kernel of the generator at the size of a training step, compared
//! with this GPU's measured ceilings.

use crate::cli::Context;
use crate::error::Result;

/// Time single GPU kernels
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The generator's depth; its width is 64 times the depth
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=32))]
    depth: u16,
    /// Images per batch; where guidance is timed, half of them stand for the unconditional ones
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..))]
    batch_size: u32,
    /// Side of the latent map; 16 makes 256 tokens
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=64))]
    side: u16,
    /// Number of timed runs
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// Only kernels whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Print one JSON line per kernel
    #[arg(long)]
    json: bool,
}

#[cfg(not(feature = "cuda"))]
pub fn run(_: &Args, _: &Context) -> Result<()> {
    Err(crate::error::usage(
        "bench ops times GPU kernels, and this binary has none",
        "build it with `cargo build --release --features cuda`; the CPU's operations are timed by `cargo bench --bench ops`",
    ))
}

#[cfg(feature = "cuda")]
pub fn run(args: &Args, context: &Context) -> Result<()> {
    match context.device()? {
        candle_core::Device::Cuda(cuda) => time_kernels(args, &cuda),
        _ => Err(crate::error::usage(
            "--device cpu: bench ops times GPU kernels",
            "leave it out; the CPU's operations are timed by `cargo bench --bench ops`",
        )),
    }
}

#[cfg(feature = "cuda")]
fn time_kernels(args: &Args, cuda: &candle_core::CudaDevice) -> Result<()> {
    use std::sync::Arc;

    use serde_json::json;

    use super::clock::{Ceilings, times};
    use super::kernels::Bench;
    use super::spread;
    use crate::cli::print;
    use crate::ops::cuda::Gpu;

    let gpu = Arc::new(Gpu::new(cuda)?);
    let ceilings = Ceilings::measure(&gpu)?;
    let (teraflops, terabytes) = (ceilings.flop / 1e12, ceilings.bytes / 1e12);
    let device = gpu.description()?;
    if args.json {
        let line = json!({"work": "ceilings", "teraflop_per_second": teraflops, "terabyte_per_second": terabytes, "device": device});
        print(&format!("{line}\n"))?;
    } else {
        print(&format!(
            "{device}; ceilings: bf16 matmul {teraflops:.0} TFLOP/s, copy {terabytes:.2} TB/s\n\
             {:<34} {:>9} {:>9} {:>8} {:>9} {:>6}\n",
            "kernel", "ms", "TFLOP/s", "TB/s", "floor ms", "share"
        ))?;
    }
    let batch = args.batch_size as usize;
    let bench = Bench::new(gpu, args.depth, args.side, batch)?;
    for case in bench
        .cases()?
        .into_iter()
        .filter(|c| c.name.contains(&args.only))
    {
        let [ms, least, most] = spread(&times(&bench.gpu, args.repeats as usize, &case.launch)?);
        let floor = ceilings.floor(case.flop, case.bytes);
        print(&if args.json {
            let line = json!({
                "work": case.name, "ms": ms, "ms_least": least, "ms_most": most, "flop": case.flop, "bytes": case.bytes,
                "ms_floor": floor, "share_of_ceiling": floor / ms,
            });
            format!("{line}\n")
        } else {
            format!(
                "{:<34} {ms:>9.4} {:>9.1} {:>8.2} {floor:>9.4} {:>5.0}%\n",
                case.name,
                case.flop / ms / 1e9,
                case.bytes / ms / 1e9,
                100.0 * floor / ms
            )
        })?;
    }
    Ok(())
}
