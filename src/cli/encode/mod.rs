//! `rdpm encode`: images to codes (Algorithm 1), in one file or in shards.

mod batches;
mod shards;

use std::path::{Path, PathBuf};

use serde_json::json;

use super::Context;
use super::inputs::ImageArgs;
use super::part::Part;
use crate::error::{Result, usage};
use crate::store::atomic;
use crate::store::codes::{Format, Origin, read_noise};
use crate::world::{Work, World};
use batches::{Encoder, Given, Pieces, no_image};

/// Encode images to codes
///
/// The codes [N,T,h,w] and the images' labels and names, in a file or a folder of shards, in the
/// format that your program reads; `decode` turns each back into images.
///
/// With --shard-size, several processes of a launcher (see `rdpm launch`) divide the shards.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    images: ImageArgs,
    /// The file to write, or with --shard-size the folder for shards [default: codes, with the
    /// format's ending]
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// The format of files [default: by the ending of --out, else safetensors]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Write shards of N images each; the same command goes on with those that are missing
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    shard_size: Option<u32>,
    /// Write the shards I, I+N, I+2N, …, so that N processes share a set; I counts from 0
    #[arg(long, value_name = "I/N", requires = "shard_size")]
    pub(super) part: Option<Part>,
    /// Encode the mirror image of every image too, right after it
    #[arg(long)]
    flip: bool,
    /// Also write the latents before noise and quantization, as `latents` [N,d,h,w]
    #[arg(long)]
    latents: bool,
    /// Also write the noise, as `noise` [N,T,d,h,w]
    #[arg(long)]
    save_noise: bool,
    /// Take the noise from `noise` [N,T,d,h,w] in this safetensors file instead of drawing it: one
    /// row per image, or per image that is not skipped
    #[arg(long, value_name = "FILE", conflicts_with_all = ["flip", "shard_size"])]
    noise: Option<PathBuf>,
    /// Print a summary as JSON
    #[arg(long)]
    json: bool,
}

const WORK: Work = Work {
    unit: "shard",
    remedy: "whole shards are kept: start all ranks again",
};

impl Args {
    /// Whether it writes shards, which processes may divide.
    pub(super) fn has_shards(&self) -> bool {
        self.shard_size.is_some()
    }
}

pub fn run(args: &Args, context: &Context) -> Result<()> {
    // Without shards, only the first of a launcher's processes comes here.
    let alone = args.part.is_some() || !args.has_shards();
    context.share(alone, WORK, |context, world| encode(args, context, world))
}

fn encode(args: &Args, context: &Context, world: &World) -> Result<()> {
    let (format, out) = destination(args)?;
    // Rank 0 alone keeps an index of the images.
    let inputs = world.first_then(|| args.images.open(context))?;
    if world.is_first() {
        inputs.warn_of_labels();
    }
    let model = &inputs.model;
    let given = match &args.noise {
        Some(path) => Some(Given::new(read_noise(path)?, &inputs, &args.images)?),
        None => None,
    };
    let encoder = Encoder {
        inputs: &inputs,
        origin: Origin {
            tokenizer: model.tokenizer_hash()?,
            codebook_size: model.config.quantizer.codebook_size,
            seed: args.images.seed,
        },
        flip: args.flip,
        latents: args.latents,
        save_noise: args.save_noise,
        given,
    };
    if let Some(size) = args.shard_size {
        let part = args.part.unwrap_or(Part {
            index: world.rank(),
            count: world.size(),
        });
        let made = shards::write(&encoder, &out, format, size as usize, part, world)?;
        if !world.is_first() {
            return Ok(());
        }
        let of_all = match args.part {
            Some(part) => format!(" of {}, part {part}", made.total),
            None => String::new(),
        };
        return super::print(&match args.json {
            true => format!(
                "{}\n",
                json!({
                    "out": out, "format": format, "model": model.path, "images": made.images,
                    "skipped": made.skipped, "shards": made.shards, "kept": made.kept,
                })
            ),
            false => format!(
                "{}: {} images in {} shards{of_all}{}\n",
                out.display(),
                made.images,
                made.shards,
                match made.kept {
                    0 => String::new(),
                    kept => format!(", {kept} of them there already"),
                }
            ),
        });
    }
    let mut pieces = Pieces::default();
    let (images, skipped) = inputs.each("encode", |batch| encoder.encode(batch, &mut pieces))?;
    if let Some(given) = &encoder.given {
        given.check_all(images)?;
    }
    let codes = pieces.join(&encoder)?.ok_or_else(no_image)?;
    codes.write(&out, format)?;
    super::print(&match args.json {
        true => {
            let line = json!({
                "out": out, "format": format, "model": model.path, "images": images,
                "skipped": skipped,
            });
            format!("{line}\n")
        }
        false => format!("{}\n", out.display()),
    })
}

/// The format, and where files go; what cannot be written is refused before hours of work.
fn destination(args: &Args) -> Result<(Format, PathBuf)> {
    let named = args.out.as_deref().and_then(Format::of_name);
    if args.shard_size.is_some() {
        if let (Some(_), Some(out)) = (named, &args.out) {
            return Err(usage(
                format!(
                    "--out {}: the name of a file, and shards need a folder",
                    out.display()
                ),
                "name a folder, or leave --shard-size out",
            ));
        }
        let out = args.out.clone().unwrap_or_else(|| "codes".into());
        return Ok((args.format.unwrap_or(Format::Safetensors), out));
    }
    let format = args.format.or(named).unwrap_or(Format::Safetensors);
    let out = args.out.clone().unwrap_or_else(|| format.name("codes"));
    if let Some(named) = named.filter(|named| *named != format) {
        return Err(usage(
            format!(
                "--out {}: the name of a {named} file, and --format is {format}",
                out.display()
            ),
            format!("call it {}", format.name("codes").display()),
        ));
    }
    match format {
        Format::Npy => check_folder(&out)?,
        _ => atomic::check_writable(&out)?,
    }
    Ok((format, out))
}

/// Refuses a folder that holds something else than codes: it would be replaced.
fn check_folder(out: &Path) -> Result<()> {
    let is_empty = std::fs::read_dir(out).map_or(true, |mut entries| entries.next().is_none());
    match !out.exists() || (out.is_dir() && (is_empty || Format::is_codes(out))) {
        true => Ok(()),
        false => Err(usage(
            format!("{} exists and holds no codes", out.display()),
            "name a new folder with --out",
        )),
    }
}
