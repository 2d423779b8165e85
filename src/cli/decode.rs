//! `rdpm decode`: a file of codes to images.

use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use serde_json::json;

use super::{Context, ScaleArgs};
use crate::error::{Result, hinted, usage};
use crate::model::Tokenizer;
use crate::sample::{LatentDecoder, Output, Picture, Pictures, Pretrained};
use crate::store::codes::{Codes, Origin, set};
use crate::telemetry::Progress;

/// Decode codes to images
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files of codes in any format of `rdpm encode`, or folders of its shards
    #[arg(value_name = "CODES", required = true)]
    codes: Vec<PathBuf>,
    /// A run folder of either stage, a bundle, a folder of `export --hf`,
    /// hf://owner/repo[@revision], or `builtin`, the built-in model [default: $RDPM_MODEL, else the
    /// newest finished train-gen run under runs/, else builtin]
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
    let mut files = Vec::new();
    for path in &args.codes {
        files.extend(set::files(path)?);
    }
    let set = Set::look(files)?;
    let model = Pretrained::open(args.model.as_deref(), &context.device()?)?;
    let hash = model.tokenizer_hash()?;
    if set.origin.tokenizer != hash && !args.force {
        return Err(hinted(
            format!(
                "{} was made by another tokenizer: expected {}…, found {}…",
                set.first().display(),
                start(&hash),
                start(&set.origin.tokenizer)
            ),
            "name the model that encoded it with --model, or decode anyway with --force",
        ));
    }
    let k = model.config.quantizer.codebook_size;
    if set.origin.codebook_size > k {
        return Err(usage(
            format!(
                "{} has codes of a codebook of {}, the model's has {k}",
                set.first().display(),
                set.origin.codebook_size
            ),
            "name the model that encoded it with --model",
        ));
    }
    let (count, [h, w]) = (set.images, set.grid);
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
        let mut number = 0;
        for file in &set.files {
            let codes = Codes::read(file)?;
            for begin in (0..codes.len()).step_by(batch) {
                let part = codes
                    .codes
                    .narrow(1, begin, batch.min(codes.len() - begin))?;
                let z = sum_of(
                    &part.contiguous()?.to_device(&model.device)?,
                    &model.tokenizer,
                )?;
                let name = |i| format!("image {} of {}", begin + i, file.display());
                let images = decoder.images(&z, name)?;
                for (image, at) in images.into_iter().zip(begin..) {
                    put(Picture {
                        images: vec![image],
                        label: codes.labels.get(at).copied().unwrap_or(0),
                        number,
                    })?;
                    number += 1;
                    progress.advance();
                }
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

/// Files of codes that fit together.
struct Set {
    files: Vec<PathBuf>,
    origin: Origin,
    /// T
    steps: usize,
    /// h, w
    grid: [usize; 2],
    images: usize,
}

impl Set {
    /// Reads all files once, so that a damaged one is found before any picture is made.
    ///
    /// Errors: codes of different tokenizers or shapes.
    fn look(files: Vec<PathBuf>) -> Result<Self> {
        let mut found: Option<Self> = None;
        for file in &files {
            let codes = Codes::read(file)?;
            let (steps, n, h, w) = codes.codes.dims4()?;
            let set = found.get_or_insert_with(|| Self {
                files: files.clone(),
                origin: codes.origin.clone(),
                steps,
                grid: [h, w],
                images: 0,
            });
            let names = || format!("{} and {}", set.first().display(), file.display());
            if codes.origin.tokenizer != set.origin.tokenizer {
                return Err(usage(
                    format!(
                        "{} are of different tokenizers: {}… and {}…",
                        names(),
                        start(&set.origin.tokenizer),
                        start(&codes.origin.tokenizer)
                    ),
                    "decode the files of one tokenizer at a time",
                ));
            }
            if (steps, [h, w]) != (set.steps, set.grid) {
                return Err(usage(
                    format!("{} have codes of different shapes", names()),
                    "decode the files of one shape at a time",
                ));
            }
            set.images += n;
        }
        found.ok_or_else(|| usage("no file of codes is named", "rdpm decode CODES"))
    }

    fn first(&self) -> &Path {
        &self.files[0]
    }
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
