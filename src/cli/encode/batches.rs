//! Batches of images to codes, and batches of codes to the codes of a file.

use candle_core::{Device, Tensor};

pub(super) use super::super::inputs::no_image;
use super::super::inputs::{ImageArgs, Inputs};
use crate::data::Batch;
use crate::error::{Result, hinted};
use crate::ops::Noise;
use crate::rng::{Purpose, normal};
use crate::store::codes::{Codes, Origin};

/// A mirror image's number is its image's plus this: it has noise of its own, which does not depend
/// on how many images there are.
const MIRRORED: u64 = 1 << 32;

/// Turns batches into codes.
pub(super) struct Encoder<'a> {
    pub inputs: &'a Inputs,
    pub origin: Origin,
    pub flip: bool,
    pub latents: bool,
    pub save_noise: bool,
    /// Noise that is not drawn; without flips.
    pub given: Option<Given>,
}

/// Codes of images in the order of the file, batch by batch, on the CPU.
#[derive(Default)]
pub(super) struct Pieces {
    /// Each [T,n,h,w].
    codes: Vec<Tensor>,
    labels: Vec<u32>,
    names: Vec<String>,
    mirrored: Vec<bool>,
    /// Each [T,n,h,w,d].
    noise: Vec<Tensor>,
    /// Each [n,h,w,d].
    latents: Vec<Tensor>,
}

/// The codes of one side of a batch.
struct Side {
    codes: Tensor,
    noise: Option<Tensor>,
    latents: Option<Tensor>,
}

impl Encoder<'_> {
    /// Adds the codes of a batch.
    pub fn encode(&self, batch: Batch, pieces: &mut Pieces) -> Result<()> {
        let before = pieces.labels.len();
        let plain = self.side(&batch, &batch.images, &batch.indices, before)?;
        if !self.flip {
            pieces.codes.push(plain.codes);
            pieces.noise.extend(plain.noise);
            pieces.latents.extend(plain.latents);
            pieces.labels.extend(batch.labels);
            pieces.names.extend(batch.names);
            return Ok(());
        }
        let images = batch.images.flip(&[2])?; // [B,H,W,3]
        let numbers: Vec<u64> = batch.indices.iter().map(|i| i + MIRRORED).collect();
        let mirrored = self.side(&batch, &images, &numbers, before)?;
        // Every image's mirror image follows it: [..,B,..] twice -> [..,2B,..]
        let woven = |a: Tensor, b: Tensor, dim: usize| -> Result<Tensor> {
            Ok(Tensor::stack(&[a, b], dim + 1)?.flatten(dim, dim + 1)?)
        };
        pieces.codes.push(woven(plain.codes, mirrored.codes, 1)?);
        if let (Some(a), Some(b)) = (plain.noise, mirrored.noise) {
            pieces.noise.push(woven(a, b, 1)?);
        }
        if let (Some(a), Some(b)) = (plain.latents, mirrored.latents) {
            pieces.latents.push(woven(a, b, 0)?);
        }
        for (label, name) in batch.labels.into_iter().zip(batch.names) {
            pieces.labels.extend([label; 2]);
            pieces.names.extend([name.clone(), name]);
            pieces.mirrored.extend([false, true]);
        }
        Ok(())
    }

    /// Codes of `images`, whose noise is of `numbers`; `before` images came before them.
    fn side(&self, batch: &Batch, images: &Tensor, numbers: &[u64], before: usize) -> Result<Side> {
        let (inputs, seed) = (self.inputs, self.origin.seed);
        let model = &inputs.model;
        let quantizer = &model.tokenizer.quantizer;
        let v = model.tokenizer.encode(images)?; // [B,h,w,d]
        inputs.check_finite(&v, batch, "its latents")?;
        let noise = match &self.given {
            Some(given) => Some(given.of(inputs, batch, before)?),
            None if self.save_noise => Some(drawn(seed, numbers, &v, quantizer.steps())?),
            None => None,
        };
        let used = match &noise {
            Some(noise) => Noise::Given(noise),
            None => Noise::Drawn {
                seed,
                indices: numbers,
            },
        };
        let quantized = quantizer.quantize(&v, &used)?;
        let sum = quantized.sums.get(quantizer.steps())?;
        inputs.check_finite(&sum, batch, "the sums of its codes' vectors")?;
        let kept = |tensor: Tensor, is_kept: bool| match is_kept {
            true => tensor.to_device(&Device::Cpu).map(Some),
            false => Ok(None),
        };
        Ok(Side {
            codes: quantized.codes.to_device(&Device::Cpu)?, // [T,B,h,w]
            noise: match noise {
                Some(noise) => kept(noise, self.save_noise)?,
                None => None,
            },
            latents: kept(v, self.latents)?,
        })
    }
}

impl Pieces {
    /// All as the codes of one file; none if there are no images.
    pub fn join(self, encoder: &Encoder) -> Result<Option<Codes>> {
        if self.codes.is_empty() {
            return Ok(None);
        }
        let whole = |parts: Vec<Tensor>, dim| match parts.is_empty() {
            true => Ok(None),
            false => Tensor::cat(&parts, dim).map(Some),
        };
        let labelled = !encoder.inputs.source.classes().is_empty();
        Ok(Some(Codes {
            codes: Tensor::cat(&self.codes, 1)?,
            labels: if labelled { self.labels } else { Vec::new() },
            names: self.names,
            mirrored: self.mirrored,
            noise: whole(self.noise, 1)?,
            latents: whole(self.latents, 0)?,
            origin: encoder.origin.clone(),
        }))
    }
}

/// Noise of a file.
pub(super) struct Given {
    /// [T,N,h,w,d]
    noise: Tensor,
    rows: usize,
    /// It has rows for all images. Noise saved with --skip-bad-images has rows for those only that
    /// were read then, in order.
    by_number: bool,
}

impl Given {
    pub fn new(noise: Tensor, inputs: &Inputs, args: &ImageArgs) -> Result<Self> {
        let (rows, images) = (noise.dim(1)?, inputs.source.len());
        if !args.skip_bad_images {
            check_rows(rows, images)?;
        }
        Ok(Self {
            noise,
            rows,
            by_number: rows == images,
        })
    }

    /// Of the images of `batch`, [T,B,h,w,d].
    fn of(&self, inputs: &Inputs, batch: &Batch, before: usize) -> Result<Tensor> {
        let count = batch.indices.len();
        let numbers: Vec<u32> = match self.by_number {
            true => batch.indices.iter().map(|i| *i as u32).collect(),
            false => (before as u32..).take(count).collect(),
        };
        if !self.by_number && self.rows < before + count {
            check_rows(self.rows, before + count)?;
        }
        let numbers = Tensor::new(numbers, self.noise.device())?;
        let chosen = self.noise.index_select(&numbers, 1)?;
        let by_image = chosen.transpose(0, 1)?;
        inputs.check_finite(&by_image, batch, "the given noise's values")?;
        Ok(chosen.to_device(&inputs.model.device)?)
    }

    /// Refuses noise for more images than were read.
    pub fn check_all(&self, images: usize) -> Result<()> {
        match self.by_number {
            true => Ok(()),
            false => check_rows(self.rows, images),
        }
    }
}

/// Refuses noise for a different number of images.
fn check_rows(rows: usize, images: usize) -> Result<()> {
    match rows == images {
        true => Ok(()),
        false => Err(hinted(
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
