//! `rdpm encode`: images to a file of codes (Algorithm 1).

use std::path::PathBuf;

use candle_core::{Device, Tensor};
use serde_json::json;

use super::Context;
use super::inputs::ImageArgs;
use crate::error::{Result, hinted};
use crate::ops::Noise;
use crate::rng::{Purpose, normal};
use crate::store::codes::{Codes, read_noise};

/// Encode images to codes
///
/// The file (safetensors) holds `codes` [N,T,h,w] and `labels` [N]; `decode` turns it back into
/// images.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    images: ImageArgs,
    /// The file of codes to write
    #[arg(long, value_name = "FILE", default_value = "codes.safetensors")]
    out: PathBuf,
    /// Take the noise from `noise` [N,T,d,h,w] in this file instead of drawing it: one row per
    /// image, or per image that is not skipped
    #[arg(long, value_name = "FILE")]
    noise: Option<PathBuf>,
    /// Also write the noise, as `noise` [N,T,d,h,w]
    #[arg(long)]
    save_noise: bool,
    /// Also write the latents before noise and quantization, as `latents` [N,d,h,w]
    #[arg(long)]
    save_latents: bool,
    /// Print a summary as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, context: &Context) -> Result<()> {
    let inputs = args.images.open(context)?;
    inputs.warn_of_labels();
    let model = &inputs.model;
    let quantizer = &model.tokenizer.quantizer;
    let given = args.noise.as_deref().map(read_noise).transpose()?; // [T,N,h,w,d]
    let rows = given.as_ref().map(|noise| noise.dim(1)).transpose()?;
    let images = inputs.source.len();
    // Noise saved with --skip-bad-images has rows for the other images only, in order.
    let by_number = rows == Some(images);
    if !by_number && !args.images.skip_bad_images {
        check_rows(rows, images)?;
    }
    let (mut codes, mut labels, mut noises, mut latents) = (vec![], vec![], vec![], vec![]);
    let (count, skipped) = inputs.each("encode", |batch| {
        let v = model.tokenizer.encode(&batch.images)?; // [B,h,w,d]
        inputs.check_finite(&v, &batch, "its latents")?;
        let noise = match &given {
            Some(noise) => {
                let (first, count) = (labels.len(), batch.indices.len());
                let numbers: Vec<u32> = match by_number {
                    true => batch.indices.iter().map(|i| *i as u32).collect(),
                    false => (first as u32..).take(count).collect(),
                };
                if !by_number && noise.dim(1)? < first + count {
                    check_rows(rows, first + count)?;
                }
                let numbers = Tensor::new(numbers, noise.device())?;
                let chosen = noise.index_select(&numbers, 1)?;
                inputs.check_finite(
                    &chosen.transpose(0, 1)?,
                    &batch,
                    "the given noise's values",
                )?;
                Some(chosen.to_device(&model.device)?)
            }
            None if args.save_noise => Some(drawn(
                args.images.seed,
                &batch.indices,
                &v,
                quantizer.steps(),
            )?),
            None => None,
        };
        let used = match &noise {
            Some(noise) => Noise::Given(noise),
            None => Noise::Drawn {
                seed: args.images.seed,
                indices: &batch.indices,
            },
        };
        let quantized = quantizer.quantize(&v, &used)?;
        let sum = quantized.sums.get(quantizer.steps())?;
        inputs.check_finite(&sum, &batch, "the sums of its codes' vectors")?;
        codes.push(quantized.codes.to_device(&Device::Cpu)?); // [T,B,h,w]
        labels.extend(batch.labels);
        if args.save_noise {
            noises.extend(noise.map(|n| n.to_device(&Device::Cpu)).transpose()?);
        }
        if args.save_latents {
            latents.push(v.to_device(&Device::Cpu)?);
        }
        Ok(())
    })?;
    if !by_number {
        check_rows(rows, count)?;
    }
    if codes.is_empty() {
        return Err(hinted(
            "no image could be read",
            "the warnings above say why; name other images",
        ));
    }
    let labelled = !inputs.source.classes().is_empty();
    let whole = |parts: Vec<Tensor>, dim| match parts.is_empty() {
        true => Ok(None),
        false => Tensor::cat(&parts, dim).map(Some),
    };
    Codes {
        codes: Tensor::cat(&codes, 1)?,
        labels: if labelled { labels } else { Vec::new() },
        noise: whole(noises, 1)?,
        latents: whole(latents, 0)?,
        tokenizer: model.tokenizer_hash()?,
        codebook_size: model.config.quantizer.codebook_size,
        seed: args.images.seed,
    }
    .write(&args.out)?;
    super::print(&if args.json {
        let line =
            json!({"out": args.out, "model": model.path, "images": count, "skipped": skipped});
        format!("{line}\n")
    } else {
        format!("{}\n", args.out.display())
    })
}

/// Refuses noise for a different number of images.
fn check_rows(rows: Option<usize>, images: usize) -> Result<()> {
    match rows.filter(|rows| *rows != images) {
        None => Ok(()),
        Some(rows) => Err(hinted(
            format!("the noise is for {rows} images, but there are {images}"),
            "name the images that the noise was saved with, and add --skip-bad-images if some were skipped then",
        )),
    }
}

/// ε_1 .. ε_T exactly as the quantizer would draw them, [T,B,h,w,d].
fn drawn(seed: u64, indices: &[u64], v: &Tensor, steps: usize) -> candle_core::Result<Tensor> {
    let step = |t| normal(seed, Purpose::Noise, indices, t, &v.dims()[1..], v.device());
    let steps = (1..=steps as u32)
        .map(step)
        .collect::<candle_core::Result<Vec<_>>>()?;
    Tensor::stack(&steps, 0)
}
