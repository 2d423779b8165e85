//! From an image to Inception's input [299,299,3]: three methods in common use, which give
//! different metrics for the same images.
//!
//! | mode | resize | then |
//! |---|---|---|
//! | `adm` | TensorFlow 1's bilinear, no half-pixel centers | (x − 128) / 128 |
//! | `pytorch-fid` | PyTorch's bilinear, half-pixel centers, no antialias | 2·(x / 255) − 1 |
//! | `clean` | PIL's bicubic with antialias, in float per channel, clipped to 0..255 | (x − 128) /
//! 128 |

mod bilinear;

use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::data::resize::{Filter, resize_f32};
use crate::error::Result;
use bilinear::Centres;

/// Width and height of Inception's input.
pub const SIDE: usize = 299;

/// How an image becomes Inception's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Preprocess {
    /// The ADM evaluator's and torch-fidelity's
    #[default]
    Adm,
    /// pytorch-fid's
    PytorchFid,
    /// clean-fid's
    Clean,
}

impl Preprocess {
    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Preprocess::Adm => "adm",
            Preprocess::PytorchFid => "pytorch-fid",
            Preprocess::Clean => "clean",
        }
    }

    /// The network's input [B,299,299,3]; the images may differ in size.
    pub fn apply(self, images: &[RgbImage]) -> Result<Tensor> {
        let length = SIDE * SIDE * 3;
        let mut values = vec![0f32; images.len() * length];
        values
            .par_chunks_mut(length)
            .zip(images)
            .for_each(|(out, image)| self.fill(image, out));
        let shape = (images.len(), SIDE, SIDE, 3);
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }

    /// The same on `device` in `dtype`. A GPU resizes images of one size itself, from their bytes,
    /// but for `clean`, whose sums are f64.
    pub fn apply_on(self, images: &[RgbImage], device: &Device, dtype: DType) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if device.is_cuda()
            && let Some(resized) = self.on_gpu(images, device, dtype)?
        {
            return Ok(resized);
        }
        Ok(self.apply(images)?.to_device(device)?.to_dtype(dtype)?)
    }

    #[cfg(feature = "cuda")]
    fn on_gpu(self, images: &[RgbImage], device: &Device, dtype: DType) -> Result<Option<Tensor>> {
        let (centres, linear) = match self {
            Preprocess::Adm => (Centres::Corner, (1.0 / 128.0, -1.0)),
            Preprocess::PytorchFid => (Centres::Middle, (2.0 / 255.0, -1.0)),
            Preprocess::Clean => return Ok(None),
        };
        let Some((width, height)) = images.first().map(RgbImage::dimensions) else {
            return Ok(None);
        };
        if !images.iter().all(|i| i.dimensions() == (width, height)) {
            return Ok(None);
        }
        let (width, height) = (width as usize, height as usize);
        let parts: Vec<&[u8]> = images.iter().map(|i| i.as_raw().as_slice()).collect();
        let bytes = parts.concat();
        let bytes = Tensor::from_vec(bytes, (images.len(), height, width, 3), device)?;
        let [down, across] = [height, width].map(|from| centres.taps(from));
        let resized = crate::ops::resample::resample(&bytes, [&down, &across], linear, dtype)?;
        Ok(Some(resized))
    }

    fn fill(self, image: &RgbImage, out: &mut [f32]) {
        match self {
            Preprocess::Adm => {
                bilinear::resize(image, Centres::Corner, out);
                out.iter_mut().for_each(|x| *x = (*x - 128.0) / 128.0);
            }
            Preprocess::PytorchFid => {
                bilinear::resize(image, Centres::Middle, out);
                out.iter_mut().for_each(|x| *x = 2.0 * (*x / 255.0) - 1.0);
            }
            Preprocess::Clean => {
                let (w, h) = image.dimensions();
                let pixels: Vec<f32> = image.as_raw().iter().map(|&b| f32::from(b)).collect();
                let size = (w as usize, h as usize);
                let resized = resize_f32(&pixels, size, (SIDE, SIDE), 3, Filter::Bicubic);
                for (out, x) in out.iter_mut().zip(resized) {
                    *out = (x.clamp(0.0, 255.0) - 128.0) / 128.0;
                }
            }
        }
    }
}
