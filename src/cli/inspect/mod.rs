//! `rdpm inspect FILE|RUN`: what a file or folder is, and what it contains.

mod facts;
mod text;

use std::path::PathBuf;

use super::Context;
use crate::error::Result;
use crate::store::builtin;

/// Show what a file or run contains: configuration, parameters by part, hashes, metrics
///
/// Knows run folders, checkpoints, bundles, codes, latent caches, .npz, and any .safetensors or
/// .pth file.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A file, a run folder or a checkpoint's folder [default: builtin, the built-in model]
    #[arg(value_name = "FILE|RUN", default_value = builtin::NAME, hide_default_value = true)]
    path: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Also print the name, type and shape of every tensor
    #[arg(long)]
    tensors: bool,
}

pub fn run(args: &Args, _context: &Context) -> Result<()> {
    let facts = facts::of(&args.path, args.tensors)?;
    let text = if args.json {
        format!("{:#}\n", serde_json::Value::Object(facts))
    } else {
        text::render(&facts)?
    };
    super::print(&text)
}
