//! A fixed validation batch: how well the tokenizer's moving average reconstructs it, and images of
//! that.
//!
//! Image i always uses the noise of index i, so that curves over training depend on the model
//! alone.

use std::path::Path;

use candle_core::{Result, Tensor};
use serde_json::{Map, Value, json};

use super::step_metrics::round;
use crate::model::losses::psnr;
use crate::model::perceptual::Lpips;
use crate::model::tokenizer::Tokenizer;
use crate::ops::{Noise, finite};
use crate::sample::{Scale, grid, named_rgb, save_png};

/// The maximum number of images in the grid, spread over the batch.
const SHOWN: usize = 8;

pub struct Validation {
    /// [B,H,W,3] in [-1,1]
    images: Tensor,
    indices: Vec<u64>,
    seed: u64,
}

impl Validation {
    pub fn new(images: Tensor, seed: u64) -> Result<Self> {
        let indices = (0..images.dim(0)? as u64).collect();
        Ok(Self {
            images,
            indices,
            seed,
        })
    }

    /// PSNR of the reconstruction, and the standard deviation of v around its channel means. If the
    /// latter is near 0, the latents carry no information and are drowned by the noise.
    pub fn metrics(&self, tokenizer: &Tokenizer) -> Result<Map<String, Value>> {
        let (v, sums) = self.sums(tokenizer)?;
        let last = sums.get(sums.dim(0)? - 1)?;
        let mean = v.mean_keepdim(0)?.mean_keepdim(1)?.mean_keepdim(2)?;
        let variance = v.broadcast_sub(&mean)?.sqr()?.mean_all()?;
        let deviation = f64::from(variance.to_scalar::<f32>()?).sqrt();
        let quality = self.psnr(&tokenizer.decode(&last)?)?;
        Ok(Map::from_iter([
            ("psnr".to_string(), json!(round(quality))),
            ("latent_std".to_string(), json!(round(deviation))),
        ]))
    }

    /// Writes one row per image: original, reconstruction, D(z'_t) for t = 1..T; returns PSNR (and
    /// LPIPS) of each D(z'_t).
    pub fn picture(
        &self,
        tokenizer: &Tokenizer,
        lpips: Option<&Lpips>,
        path: &Path,
        scale: Scale,
    ) -> crate::error::Result<Map<String, Value>> {
        let (_, sums) = self.sums(tokenizer)?;
        let steps = sums.dim(0)? - 1;
        let decoded = (1..=steps)
            .map(|t| tokenizer.decode(&sums.get(t)?))
            .collect::<Result<Vec<_>>>()?;
        let count = self.indices.len();
        let shown = SHOWN.min(count);
        let columns = [&self.images, &decoded[steps - 1]]
            .into_iter()
            .chain(&decoded)
            .map(|images| named_rgb(images, |i| format!("validation image {i}")))
            .collect::<crate::error::Result<Vec<_>>>()?;
        let pictures: Vec<_> = (0..shown)
            .map(|row| row * count / shown)
            .flat_map(|at| columns.iter().map(move |column| column[at].clone()))
            .collect();
        save_png(&grid(&pictures, columns.len(), scale)?, path)?;
        let mut metrics = Map::new();
        let curve = |values: Result<Vec<f64>>| -> Result<Value> {
            Ok(values?.into_iter().map(round).collect())
        };
        let quality = decoded.iter().map(|images| self.psnr(images)).collect();
        metrics.insert("psnr_t".into(), curve(quality)?);
        if let Some(lpips) = lpips {
            let distance = |images: &Tensor| -> Result<f64> {
                // Max pooling in the network would drop a NaN.
                if !finite::is_finite(images)? {
                    return Ok(f64::NAN);
                }
                let distance = lpips.distance(&self.images, images)?;
                Ok(f64::from(distance.to_scalar::<f32>()?))
            };
            metrics.insert(
                "lpips_t".into(),
                curve(decoded.iter().map(distance).collect())?,
            );
        }
        Ok(metrics)
    }

    /// v [B,h,w,d] and z'_0..z'_T.
    fn sums(&self, tokenizer: &Tokenizer) -> Result<(Tensor, Tensor)> {
        let v = tokenizer.encode(&self.images)?;
        let noise = Noise::Drawn {
            seed: self.seed,
            indices: &self.indices,
        };
        let sums = tokenizer.quantizer.quantize(&v, &noise)?.sums;
        Ok((v, sums))
    }

    /// Mean PSNR over the images; NaN if one of them is not finite.
    fn psnr(&self, images: &Tensor) -> Result<f64> {
        if !finite::is_finite(images)? {
            return Ok(f64::NAN);
        }
        let errors = (images.clamp(-1f32, 1f32)? - &self.images)?.sqr()?;
        let errors = errors.flatten_from(1)?.mean(1)?.to_vec1::<f32>()?;
        let total: f64 = errors.iter().map(|&e| psnr(f64::from(e).max(1e-10))).sum();
        Ok(total / errors.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::store::Scope;
    use candle_core::Device;

    /// A tokenizer with one weight set to `value`, and images to evaluate it on.
    fn with(name: &str, value: f32) -> crate::error::Result<(Tokenizer, Validation)> {
        let mut config = Config::load(Some("smoke"), &[])?;
        config.data.image_size = 16;
        let device = Device::Cpu;
        let scope = Scope::init(1, &device);
        Tokenizer::new(&config, &scope)?;
        let mut tensors = scope.finish().tensors();
        let weight = tensors.get_mut(name).expect("a weight of the tokenizer");
        *weight = (&*weight * 0.0)?.affine(0.0, f64::from(value))?;
        let tokenizer = Tokenizer::new(&config, &Scope::load(&tensors, &device))?;
        let values: Vec<f32> = (0..2 * 16 * 16 * 3)
            .map(|i| (i as f32 * 0.1).sin())
            .collect();
        let images = Tensor::from_vec(values, (2, 16, 16, 3), &device)?;
        Ok((tokenizer, Validation::new(images, 3)?))
    }

    #[test]
    fn a_diverged_model_has_no_psnr_and_no_picture() -> crate::error::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("a.png");
        for value in [f32::NAN, f32::INFINITY] {
            let (tokenizer, validation) = with("decoder.conv_out.bias", value)?;
            let metrics = validation.metrics(&tokenizer)?;
            assert_eq!(metrics["psnr"], Value::Null, "{value}");
            assert!(metrics["latent_std"].is_number());
            let error = validation
                .picture(&tokenizer, None, &path, Scale::Auto)
                .unwrap_err();
            let text = crate::error::report(&error).0;
            assert!(
                text.contains("validation image 0: its pixels are not finite"),
                "{text}"
            );
            assert!(!path.exists());
            let (tokenizer, validation) = with("quant_conv.bias", value)?;
            let metrics = validation.metrics(&tokenizer)?;
            assert_eq!(metrics["latent_std"], Value::Null, "{value}");
        }
        let (tokenizer, validation) = with("decoder.conv_out.bias", 0.5)?;
        assert!(validation.metrics(&tokenizer)?["psnr"].is_number());
        Ok(())
    }
}
