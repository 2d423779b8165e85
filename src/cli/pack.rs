//! `rdpm pack DATA`: a data set as tar shards of images at the training size.

use std::path::PathBuf;

use serde_json::json;

use super::config::data_path;
use super::{Context, print};
use crate::config::Crop;
use crate::data::open;
use crate::data::pack::{Encoding, Packing, pack};
use crate::error::Result;

/// Write a data set's images at the training size into tar shards
///
/// Decoding and resizing photographs takes more time than training on them may leave. A pack is
/// made once and read at the speed of a copy; training on it gives the same bits as training on
/// the images that it was made of. The same command goes on with a pack that was stopped.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folders, tar shards, or globs of them in quotes, as for --data
    #[arg(required = true, value_name = "DATA", value_parser = data_path())]
    data: Vec<String>,
    /// The folder for the shards
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// data.image_size of the models that are trained on it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16384))]
    size: u32,
    /// Which crops it serves
    #[arg(long, value_enum, default_value_t = Keep::Random)]
    crop: Keep,
    /// Images in a shard; one that was not finished is made again after a stop
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    shard_images: u32,
    /// How images are stored, both without loss
    #[arg(long, value_enum, default_value_t = Encoding::Ppm)]
    encoding: Encoding,
    /// Leave out images that cannot be read instead of stopping
    #[arg(long)]
    skip_bad_images: bool,
    /// Print a summary as JSON
    #[arg(long)]
    json: bool,
}

/// What is kept of an image.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Keep {
    /// Whole images, the shorter side at the size: for random and center crops
    Random,
    /// The square in the middle: for center crops only
    Center,
}

pub fn run(args: &Args, _context: &Context) -> Result<()> {
    let source = open(&args.data, args.skip_bad_images)?;
    source.warn_of_doubts();
    let packing = Packing {
        out: args.out.clone(),
        size: args.size as usize,
        crop: match args.crop {
            Keep::Random => Crop::Random,
            Keep::Center => Crop::Center,
        },
        shard_images: args.shard_images as usize,
        encoding: args.encoding,
        skip_bad: args.skip_bad_images,
    };
    let packed = pack(&*source, &packing)?;
    let out = args.out.display();
    if args.json {
        let line = json!({
            "out": args.out, "image_size": args.size, "images": source.len() - packed.skipped,
            "skipped": packed.skipped, "shards": packed.shards, "kept": packed.kept, "bytes": packed.bytes,
        });
        return print(&format!("{line}\n"));
    }
    let mut notes = String::new();
    if packed.kept > 0 {
        notes += &format!(", {} of them there already", packed.kept);
    }
    if packed.skipped > 0 {
        notes += &format!(", {} images left out", packed.skipped);
    }
    print(&format!(
        "{out}: {} images in {} shards, {:.1} GB{notes}; train on it with rdpm train-vae --data '{out}/*.tar'\n",
        source.len() - packed.skipped,
        packed.shards,
        packed.bytes as f64 / 1e9
    ))
}
