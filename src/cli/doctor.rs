//! `rdpm doctor`: what this binary and this machine can compute on, and whether the kernels give
//! correct results here.

#[cfg(feature = "cuda")]
use std::sync::Arc;

use super::Context;
use crate::error::{Result, usage};
#[cfg(feature = "cuda")]
use crate::error::{hinted, report};
#[cfg(feature = "cuda")]
use crate::ops::cuda::Gpu;
#[cfg(feature = "cuda")]
use crate::ops::cuda::compare::Row;

/// Show what this machine can compute on; check the GPU kernels against the CPU
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Compare values and gradients of every kernel with its CPU reference on this machine's GPU
    #[arg(long)]
    check_ops: bool,
    /// Only these comparisons
    #[arg(long, value_name = "NAME", num_args = 1.., requires = "check_ops", value_parser = FAMILIES)]
    only: Vec<String>,
}

/// What --check-ops compares: first the kernels, one operation at a time at small odd sizes, then
/// whole passes.
const FAMILIES: [&str; 34] = [
    "activation",
    "adaln",
    "add",
    "attention",
    "batch_norm",
    "bytes",
    "cast",
    "code_counts",
    "concatenate",
    "condition",
    "conv2d",
    "cross_entropy",
    "feature_distance",
    "group_norm",
    "hinge",
    "layer_norm",
    "lookup",
    "mean_squared_error",
    "optimizer",
    "pixels",
    "pool",
    "product",
    "quantize",
    "resample",
    "running_average",
    "sample",
    "scalars",
    "standardize",
    "swiglu",
    "upsample",
    "generator",
    "quantizer",
    "sampling",
    "nccl",
];
/// How many of them are for single operations. Together these must run every kernel of the binary.
#[cfg(feature = "cuda")]
const KERNELS: usize = 30;

pub fn run(args: &Args, context: &Context) -> Result<()> {
    super::print(&format!(
        "rdpm {}, {} CPU threads\n",
        env!("CARGO_PKG_VERSION"),
        context.threads
    ))?;
    gpu(args, context)
}

#[cfg(not(feature = "cuda"))]
fn gpu(args: &Args, context: &Context) -> Result<()> {
    super::print("GPU: this binary was built without CUDA; build with --features cuda\n")?;
    context.device()?;
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
    libraries()?;
    let choice = context.choice().resolve()?;
    super::print(&format!(
        "--device {}: computes on {choice}\n",
        context.choice()
    ))?;
    match choice.open()? {
        candle_core::Device::Cuda(cuda) => {
            // The one that operations on tensors use, so that their kernels count as run.
            let gpu = Gpu::of(&cuda)?;
            super::print(&format!("GPU: {}\n", gpu.description()?))?;
            if args.check_ops {
                check_ops(&gpu, &args.only)?;
            }
            Ok(())
        }
        _ if args.check_ops => Err(usage(
            "--check-ops: there is no GPU to check",
            "`rdpm doctor --device cuda` says what is missing for one",
        )),
        _ => Ok(()),
    }
}

/// The driver and the CUDA libraries: versions, locations, and what to install.
#[cfg(feature = "cuda")]
fn libraries() -> Result<()> {
    use crate::ops::cuda::{driver, folders, libraries, nccl};
    let mut text = format!("CUDA {} in this binary", driver::BUILT_WITH);
    match driver::version() {
        None => text.push_str("; no driver\n"),
        Some(version) => {
            let release = driver::release().map_or(String::new(), |r| format!(" {r}"));
            text.push_str(&format!("; driver{release} for CUDA up to {version}\n"));
            match driver::gpus() {
                Ok(0) => text.push_str("  no GPU found\n"),
                Ok(count) => {
                    for (i, name) in driver::names(count).iter().enumerate() {
                        text.push_str(&format!("  cuda:{i:<7} {name}\n"));
                    }
                }
                Err(e) => text.push_str(&format!("{}\n", report(&e).0)),
            }
        }
    }
    let of_nccl = libraries::nccl();
    for found in libraries::found().iter().chain([of_nccl]) {
        let name = format!("lib{}", found.library.name);
        let line = match &found.place {
            Ok(opened) => {
                let version = found.version().unwrap_or_default();
                format!("{version:<10} {}", opened.path.display())
            }
            Err(_) if found.library.needed => "missing".into(),
            Err(_) if found.library.name == "nccl" => {
                "not found, needed by several processes only".into()
            }
            Err(_) => "not found, not needed".into(),
        };
        text.push_str(&format!("  {name:<12} {line}\n"));
    }
    if let (Ok(_), Err(error)) = (&of_nccl.place, nccl::library()) {
        text.push_str(&format!(
            "{}\n",
            report(&error).0.replacen("error: ", "", 1)
        ));
    }
    let missing = libraries::found().iter().filter(|f| f.library.needed);
    let missing: Vec<_> = missing
        .filter_map(|found| Some((found.library.name, driver::missing(found)?)))
        .collect();
    if missing.iter().any(|(name, _)| *name != "cuda") {
        let folders = folders::existing();
        text.push_str("searched where the system's loader does (LD_LIBRARY_PATH), then in\n");
        for folder in &folders {
            text.push_str(&format!("  {}\n", folder.display()));
        }
        if folders.is_empty() {
            text.push_str(
                "  no folder: no Python found here has NVIDIA's packages, and there is no CUDA toolkit\n",
            );
        }
    }
    // All toolkit libraries are installed the same way, so one hint is enough.
    let driver = missing.iter().find(|(name, _)| *name == "cuda");
    let toolkit = missing.iter().find(|(name, _)| *name != "cuda");
    for (_, error) in driver.into_iter().chain(toolkit) {
        text.push_str(&format!("{}\n", report(error).0.replacen("error: ", "", 1)));
    }
    super::print(&text)
}

#[cfg(feature = "cuda")]
fn family(name: &str, gpu: &Arc<Gpu>) -> candle_core::Result<Vec<Row>> {
    use crate::ops;
    match name {
        "activation" => ops::activation::check::check(gpu),
        "adaln" => ops::adaln::check::check(gpu),
        "add" => ops::add::check::check(gpu),
        "attention" => {
            let mut rows = ops::attention::check_heads::check(gpu)?;
            rows.extend(ops::attention::check::check(gpu)?);
            Ok(rows)
        }
        "batch_norm" => ops::batch_norm::check::check(gpu),
        "bytes" => ops::bytes::check::check(gpu),
        "cast" => ops::cast::check::check(gpu),
        "code_counts" => crate::train::code_counts::check::check(gpu),
        "condition" => ops::condition::check::check(gpu),
        "conv2d" => {
            let mut rows = ops::conv2d::check::check(gpu)?;
            rows.extend(ops::conv2d::check_f16::check(gpu)?);
            Ok(rows)
        }
        "cross_entropy" => ops::cross_entropy::check::check(gpu),
        "concatenate" => ops::concatenate::check::check(gpu),
        "feature_distance" => ops::feature_distance::check::check(gpu),
        "group_norm" => ops::group_norm::check::check(gpu),
        "hinge" => ops::hinge::check::check(gpu),
        "layer_norm" => ops::layer_norm::check::check(gpu),
        "lookup" => ops::lookup::check::check(gpu),
        "mean_squared_error" => ops::mean_squared_error::check::check(gpu),
        "optimizer" => {
            let mut rows = ops::optimizer::check::check(gpu)?;
            rows.extend(crate::train::check::optimizer(gpu)?);
            Ok(rows)
        }
        "pixels" => ops::pixels::check::check(gpu),
        "pool" => ops::pool::check::check(gpu),
        "product" => ops::product::check::check(gpu),
        "quantize" => {
            let mut rows = ops::quantize::check::check(gpu)?;
            rows.extend(ops::quantize::check_loss::check(gpu)?);
            Ok(rows)
        }
        "resample" => ops::resample::check::check(gpu),
        "running_average" => ops::running_average::check::check(gpu),
        "sample" => crate::sample::check::sample(gpu),
        "standardize" => ops::standardize::check::check(gpu),
        "scalars" => ops::scalars::check::check(gpu),
        "swiglu" => ops::swiglu::check::check(gpu),
        "upsample" => ops::upsample::check::check(gpu),
        "generator" => {
            let mut rows = ops::product::check::products(gpu)?;
            rows.extend(crate::model::generator::fused::check::generator(gpu)?);
            Ok(rows)
        }
        "quantizer" => {
            let mut rows = ops::quantize::check::check_larger(gpu)?;
            rows.extend(ops::quantize::check_tensors::check(gpu)?);
            Ok(rows)
        }
        "sampling" => {
            let mut rows = crate::sample::check::sampling(gpu)?;
            rows.extend(crate::sample::check_decode::decoding(gpu)?);
            Ok(rows)
        }
        "nccl" => ops::cuda::check_nccl::check(gpu),
        _ => candle_core::bail!("there is no comparison `{name}`"),
    }
}

#[cfg(feature = "cuda")]
fn check_ops(gpu: &Arc<Gpu>, only: &[String]) -> Result<()> {
    let (mut rows, mut bad) = (0, Vec::new());
    let asked = |name: &&&str| only.is_empty() || only.iter().any(|asked| asked == **name);
    for name in FAMILIES.iter().filter(asked) {
        let checked = family(name, gpu)?;
        rows += checked.len();
        let share = |row: &Row| row.error / row.allowed.max(f64::MIN_POSITIVE);
        if let Some(worst) = checked.iter().max_by(|a, b| share(a).total_cmp(&share(b))) {
            super::print(&format!(
                "{name}: {} comparisons; closest to its bound: {}: {:.1e}, at most {:.0e}\n",
                checked.len(),
                worst.name,
                worst.error,
                worst.allowed
            ))?;
        }
        if *name == "sampling" {
            for row in &checked {
                super::print(&format!("  {}: {:.1e}\n", row.name, row.error))?;
            }
        }
        bad.extend(checked.into_iter().filter(|row| !row.good()));
    }
    if FAMILIES[..KERNELS].iter().all(|name| asked(&name)) {
        let unused = gpu.unused_kernels()?;
        super::print(&match unused.is_empty() {
            true => "every kernel in this binary for this GPU was run\n".into(),
            false => format!(
                "kernels that no comparison ran: {}\n",
                unused.into_iter().collect::<Vec<_>>().join(", ")
            ),
        })?;
    }
    if bad.is_empty() {
        return super::print(&format!("all {rows} comparisons passed\n"));
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
            "{} of {rows} comparisons failed: {}",
            bad.len(),
            list.join("; ")
        ),
        "this GPU computes wrong results: please report it with the output of `rdpm doctor`",
    ))
}
