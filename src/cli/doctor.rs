//! `rdpm doctor`: what this binary and this machine can compute on, and whether the kernels are right here.

use super::Context;
use crate::error::{Result, usage};

/// Say what this machine can compute on; check the GPU's kernels against the CPU
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Compare every kernel with its CPU reference on this machine's GPU, values and gradients
    #[arg(long)]
    check_ops: bool,
}

pub fn run(args: &Args, context: &Context) -> Result<()> {
    super::print(&format!(
        "rdpm {}, {} CPU threads\n",
        env!("CARGO_PKG_VERSION"),
        context.threads
    ))?;
    gpu(args, context)
}

#[cfg(not(feature = "cuda"))]
fn gpu(args: &Args, _: &Context) -> Result<()> {
    super::print("GPU: this binary was built without CUDA; build with --features cuda\n")?;
    if args.check_ops {
        return Err(usage(
            "--check-ops: there are no kernels in this binary",
            "build it with `cargo build --release --features cuda`",
        ));
    }
    Ok(())
}

#[cfg(feature = "cuda")]
fn gpu(args: &Args, context: &Context) -> Result<()> {
    use crate::error::hinted;
    use crate::model::gpu::check;
    use crate::ops::cuda::Gpu;
    use std::sync::Arc;

    let device = context.device()?;
    let candle_core::Device::Cuda(cuda) = &device else {
        return Err(usage(
            "--device cpu: there is no GPU to look at",
            "leave it out",
        ));
    };
    let gpu = Arc::new(Gpu::new(cuda)?);
    super::print(&format!("GPU: {}\n", gpu.description()?))?;
    if !args.check_ops {
        return Ok(());
    }
    // Odd and even map sizes, one and several key blocks of attention.
    let (mut rows, mut bad) = (0, Vec::new());
    for (side, batch) in [(4, 3), (7, 2), (8, 5), (16, 2), (17, 2)] {
        let checked = check::generator(&gpu, side, batch)?;
        let worst = checked
            .iter()
            .map(|row| row.error / row.allowed.max(f64::MIN_POSITIVE));
        super::print(&format!(
            "generator, {side}×{side} tokens, {batch} images: {} comparisons, the worst at {:.0} % of its tolerance\n",
            checked.len(),
            100.0 * worst.fold(0.0, f64::max)
        ))?;
        rows += checked.len();
        bad.extend(checked.into_iter().filter(|row| !row.good()));
    }
    for row in check::quantizer(&gpu)? {
        rows += 1;
        super::print(&format!(
            "{}: {:.1e} (at most {:.0e})\n",
            row.name, row.error, row.allowed
        ))?;
        if !row.good() {
            bad.push(row);
        }
    }
    if bad.is_empty() {
        return super::print(&format!("all {rows} comparisons hold\n"));
    }
    let list: Vec<String> = bad
        .iter()
        .map(|row| {
            format!(
                "{}: {:.2e}, at most {:.0e}",
                row.name, row.error, row.allowed
            )
        })
        .collect();
    Err(hinted(
        format!(
            "{} of {rows} comparisons fail: {}",
            bad.len(),
            list.join("; ")
        ),
        "this card computes wrong results: please report it with the output of `rdpm doctor`",
    ))
}
