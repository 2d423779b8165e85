//! `rdpm bench peak`: the peak FLOP/s that other CPU benchmarks are compared with.

use serde_json::json;

use crate::cli::print;
use crate::error::Result;
use crate::telemetry::Rates;

/// Measure the peak rate of the CPU's threads: multiply-adds in registers
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print a JSON line
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let (flop, threads) = (Rates::measure().flop(), rayon::current_num_threads());
    print(&match args.json {
        true => format!(
            "{}\n",
            json!({ "flop_per_second": flop, "threads": threads })
        ),
        false => format!("{:.1} GFLOP/s in f32 on {threads} threads\n", flop / 1e9),
    })
}
