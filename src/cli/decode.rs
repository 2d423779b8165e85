//! `rdpm decode`: a file of codes to images.

use std::path::PathBuf;

use candle_core::{DType, Tensor};
use serde_json::json;

use super::{Context, ScaleArgs};
use crate::error::{Result, hinted, usage};
use crate::model::Tokenizer;
use crate::sample::{LatentDecoder, Output, Picture, Pictures, Pretrained};
use crate::store::codes::Codes;
use crate::telemetry::Progress;

/// Decode codes to images
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A file that `rdpm encode` wrote
    #[arg(value_name = "CODES")]
    codes: PathBuf,
    /// A run folder of either stage, a bundle, or `builtin` [default: $RDPM_MODEL, else the newest
    /// finished run under runs/, else the built-in model]
    #[arg(long, value_name = "RUN|BUNDLE")]
    model: Option<PathBuf>,
    /// A sheet (.png), a folder of PNGs (any other name) or ADM's array file (.npz)
    #[arg(long, value_name = "PATH", default_value = "decoded.png")]
    out: PathBuf,
    /// Images per batch; results do not depend on it
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Decode even if another tokenizer made the codes
    #[arg(long)]
    force: bool,
    /// Print a summary as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    scale: ScaleArgs,
}

pub fn run(args: &Args, context: &Context) -> Result<()> {
    let output = Output::from_path(&args.out, args.scale.scale)?;
    let codes = Codes::read(&args.codes)?;
    let model = Pretrained::open(args.model.as_deref(), &context.device()?)?;
    let hash = model.tokenizer_hash()?;
    if codes.tokenizer != hash && !args.force {
        return Err(hinted(
            format!(
                "{} was made by another tokenizer: expected {}…, found {}…",
                args.codes.display(),
                start(&hash),
                start(&codes.tokenizer)
            ),
            "name the model that encoded it with --model, or decode anyway with --force",
        ));
    }
    let k = model.config.quantizer.codebook_size;
    if codes.codebook_size > k {
        return Err(usage(
            format!(
                "{} has codes of a codebook of {}, the model's has {k}",
                args.codes.display(),
                codes.codebook_size
            ),
            "name the model that encoded it with --model",
        ));
    }
    let (_, count, h, w) = codes.codes.dims4()?;
    let pixels = model.config.data.image_size / model.side();
    let decoder = LatentDecoder::new(&model.tokenizer);
    let mut progress = Progress::new("decode", count as u64, 0);
    let pictures = Pictures {
        count,
        width: w * pixels,
        height: h * pixels,
        columns: (count as f64).sqrt().ceil() as usize,
        beside: 1,
    };
    output.write(pictures, |put| {
        let batch = args.batch_size as usize;
        for begin in (0..count).step_by(batch) {
            let part = codes.codes.narrow(1, begin, batch.min(count - begin))?;
            let z = sum_of(
                &part.contiguous()?.to_device(&model.device)?,
                &model.tokenizer,
            )?;
            let name = |i| format!("image {} of {}", begin + i, args.codes.display());
            let images = decoder.images(&z, name)?;
            for (image, number) in images.into_iter().zip(begin..) {
                put(Picture {
                    images: vec![image],
                    label: codes.labels.get(number).copied().unwrap_or(0),
                    number: number as u64,
                })?;
                progress.advance();
            }
        }
        Ok(())
    })?;
    drop(progress);
    super::print(&if args.json {
        let line = json!({"out": args.out, "model": model.path, "images": count});
        format!("{line}\n")
    } else {
        format!("{}\n", args.out.display())
    })
}

/// z'_T [B,h,w,d] of codes [T,B,h,w], summed in the order of Algorithm 1, so that it is
/// bit-identical to the encoder's.
fn sum_of(codes: &Tensor, tokenizer: &Tokenizer) -> candle_core::Result<Tensor> {
    let (steps, b, h, w) = codes.dims4()?;
    let d = tokenizer.quantizer.codebook.embedding.dim(1)?;
    let zero = Tensor::zeros((b, h, w, d), DType::F32, codes.device())?;
    (0..steps).try_fold(zero, |sum, t| {
        sum + tokenizer.quantizer.lookup(&codes.get(t)?)?
    })
}

fn start(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}
