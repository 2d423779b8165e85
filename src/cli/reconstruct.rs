//! `rdpm reconstruct`: encodes and decodes images and prints their PSNR.

use std::path::PathBuf;

use serde_json::json;

use super::inputs::ImageArgs;
use super::{Context, ScaleArgs};
use crate::error::{Result, usage};
use crate::metrics::psnr;
use crate::ops::Noise;
use crate::sample::{LatentDecoder, Output, Picture, Pictures, to_rgb};

/// Pairs per row of a sheet.
const PAIRS: usize = 4;

/// Encode and decode images: originals and reconstructions side by side, with PSNR
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    images: ImageArgs,
    /// A sheet of pairs (.png), a folder of pairs (any other name), or reconstructions alone (.npz)
    #[arg(long, value_name = "PATH", default_value = "reconstructions.png")]
    out: PathBuf,
    /// Print the PSNR of every image and the mean as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    scale: ScaleArgs,
}

pub fn run(args: &Args, context: &Context) -> Result<()> {
    let output = Output::from_path(&args.out, args.scale.scale)?;
    let alone = matches!(output, Output::Npz(_));
    if alone && args.images.skip_bad_images {
        return Err(usage(
            "--skip-bad-images: an .npz needs the number of images before the first is written",
            "name a .png or a folder with --out",
        ));
    }
    let inputs = args.images.open(context)?;
    if !matches!(output, Output::Grid(..)) {
        // File names and `arr_1` contain labels.
        inputs.warn_of_labels();
    }
    let (tokenizer, size) = (&inputs.model.tokenizer, inputs.model.config.data.image_size);
    let decoder = LatentDecoder::new(tokenizer);
    let mut quality = Vec::new();
    let pictures = Pictures {
        count: inputs.source.len(),
        width: size,
        height: size,
        columns: PAIRS,
        beside: if alone { 1 } else { 2 },
    };
    output.write(pictures, |put| {
        inputs.each("reconstruct", |batch| {
            let v = tokenizer.encode(&batch.images)?;
            let noise = Noise::Drawn {
                seed: args.images.seed,
                indices: &batch.indices,
            };
            let sums = tokenizer.quantizer.quantize(&v, &noise)?.sums;
            let z = sums.get(tokenizer.quantizer.steps())?;
            inputs.check_finite(&v, &batch, "its latents")?;
            let name = |i: usize| inputs.name(batch.indices[i]);
            let (before, after) = (to_rgb(&batch.images)?, decoder.images(&z, name)?);
            for (i, (original, image)) in before.into_iter().zip(after).enumerate() {
                quality.push((batch.indices[i], psnr(&original, &image)));
                put(Picture {
                    images: if alone {
                        vec![image]
                    } else {
                        vec![original, image]
                    },
                    label: batch.labels[i],
                    number: batch.indices[i],
                })?;
            }
            Ok(())
        })?;
        Ok(())
    })?;
    let mean = quality.iter().map(|(_, db)| db).sum::<f64>() / quality.len().max(1) as f64;
    super::print(&if args.json {
        let images: Vec<_> = quality
            .iter()
            .map(|(number, db)| json!({"image": number, "psnr": db}))
            .collect();
        let line =
            json!({"out": args.out, "model": inputs.model.path, "psnr": mean, "images": images});
        format!("{line}\n")
    } else {
        format!(
            "{}  PSNR {mean:.2} dB, mean of {} images\n",
            args.out.display(),
            quality.len()
        )
    })
}
