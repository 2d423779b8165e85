//! `rdpm report RUN…`: a page of HTML about runs, in one file that needs no other.

mod charts;
mod configs;
mod html;
mod metrics;
mod page;
mod pictures;
mod run;
mod svg;

use std::path::{Path, PathBuf};

use super::Context;
use crate::error::{Result, usage};
use crate::store::atomic;
use crate::store::run::RunFolder;
use run::RunFacts;

/// Write an HTML page about runs: curves, pictures, configurations, checkpoints, evaluations
///
/// The page is one file without references to others. Curves need no JavaScript; scales, smoothing,
/// figures under the pointer and the slider of pictures do. A run may still be going on.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Run folders, or files of metrics (.jsonl)
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
    /// The page
    #[arg(long, value_name = "FILE", default_value = "report.html")]
    out: PathBuf,
    /// Pictures of a run at most, spread over its steps
    #[arg(long, value_name = "N", default_value_t = 12)]
    pictures: usize,
}

/// Refuses to write over what is read.
fn check_apart(out: &Path, runs: &[PathBuf]) -> Result<()> {
    let Ok(out) = out.canonicalize() else {
        return Ok(());
    };
    let of_run = |run: &PathBuf| {
        let folder = RunFolder::of_another(run.clone());
        [
            run.clone(),
            folder.metrics(),
            folder.config(),
            folder.starts(),
        ]
    };
    let read = runs.iter().flat_map(of_run);
    let mut read = read.filter_map(|path| path.canonicalize().ok());
    match read.any(|path| path == out) {
        true => Err(usage(
            format!("--out {}: the report is made from this file", out.display()),
            "choose another --out",
        )),
        false => Ok(()),
    }
}

pub fn run(args: &Args, _context: &Context) -> Result<()> {
    check_apart(&args.out, &args.runs)?;
    atomic::check_writable(&args.out)?;
    let names = run::names(&args.runs);
    let facts = args.runs.iter().zip(names);
    let facts = facts.map(|(path, name)| RunFacts::read(path, name, args.pictures));
    let facts = facts.collect::<Result<Vec<RunFacts>>>()?;
    for run in &facts {
        for note in &run.notes {
            tracing::warn!("{}: {note}", run.path.display());
        }
    }
    atomic::write_file(&args.out, page::page(&facts).as_bytes())?;
    super::print(&format!("{}\n", args.out.display()))
}

#[cfg(test)]
mod tests;
