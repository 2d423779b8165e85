//! `rdpm index DATA`: looks through a data set once, so that starts need not.

use super::config::data_path;
use super::{Context, print};
use crate::data;
use crate::error::Result;

/// Look through a data set once, so that later starts are quick
///
/// Training keeps an index of a large set by itself, and makes it again when a folder or a shard
/// has changed. By hand it is made before a job starts, or for a file that was written to in its
/// place, which no folder tells.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folders, tar shards, or globs of them in quotes, as for --data
    #[arg(required = true, value_name = "DATA", value_parser = data_path())]
    data: Vec<String>,
    /// Look at every file again, whatever the index says
    #[arg(long)]
    refresh: bool,
}

pub fn run(args: &Args, _context: &Context) -> Result<()> {
    let kept = data::keep_index(&args.data, args.refresh)?;
    let (images, path) = (kept.images, kept.path.display());
    print(&match kept.is_new {
        true => format!("{images} images: index made, {path}\n"),
        false => format!("{images} images: nothing has changed since the index was made, {path}\n"),
    })
}
