//! `rdpm man DIR`: the manual pages of this command line.

use std::path::PathBuf;

use clap::CommandFactory;

use super::{Cli, Context};
use crate::error::Result;
use crate::store::atomic;

/// Write the manual pages, one a command, into a folder
///
/// As in: rdpm man ~/.local/share/man/man1 and then man rdpm-sample
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder, made if it is missing
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

pub fn run(args: &Args, _context: &Context) -> Result<()> {
    std::fs::create_dir_all(&args.folder)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), &args.folder))
        .map_err(|e| atomic::cannot_write(&args.folder, &e))
}
