//! Images of one size as a network's input: (x/255 − mean) / deviation, [B,S,S,3].

use candle_core::{Device, Tensor};
use image::RgbImage;
use rayon::prelude::*;

/// Mean and deviation of each channel, for values in 0..1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Normalized {
    pub mean: [f32; 3],
    pub deviation: [f32; 3],
}

impl Normalized {
    /// `images` cropped to `side`×`side` by `square`, then normalized.
    pub fn batch(
        self,
        images: &[RgbImage],
        side: u32,
        device: &Device,
        square: impl Fn(&RgbImage) -> RgbImage + Sync,
    ) -> candle_core::Result<Tensor> {
        let side = side as usize;
        let mut values = vec![0f32; images.len() * side * side * 3];
        values
            .par_chunks_mut(side * side * 3)
            .zip(images)
            .for_each(|(out, image)| {
                let square = square(image);
                for (out, pixel) in out.chunks_exact_mut(3).zip(square.pixels()) {
                    for (c, (out, &byte)) in out.iter_mut().zip(&pixel.0).enumerate() {
                        *out = (f32::from(byte) / 255.0 - self.mean[c]) / self.deviation[c];
                    }
                }
            });
        Tensor::from_vec(values, (images.len(), side, side, 3), device)
    }
}
