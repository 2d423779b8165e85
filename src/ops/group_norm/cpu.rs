//! Group normalization on the CPU, parallel over images; the moments are kept for the backward
//! pass.

use super::GroupNorm;
use crate::ops::blocks;
use crate::ops::channel_norm::{Norm, moments, reciprocal_deviation};

/// Mean and 1/√(σ² + eps) of an image's groups.
pub(super) type Moments = (Vec<f32>, Vec<f32>);

/// B, H, W and C.
type Dims = (usize, usize, usize, usize);

impl GroupNorm {
    fn moments(&self, image: &[f32], c: usize) -> Moments {
        let (mean, variance) = moments(image, c, self.groups);
        (mean, reciprocal_deviation(&variance, self.eps))
    }

    fn norm<'a>(&self, moments: &'a Moments, weight: &'a [f32], bias: &'a [f32]) -> Norm<'a> {
        Norm {
            mean: &moments.0,
            r: &moments.1,
            weight,
            bias,
            activation: self.activation,
        }
    }

    pub(super) fn forward(
        &self,
        x: &[f32],
        weight: &[f32],
        bias: &[f32],
        (_, h, w, c): Dims,
    ) -> Vec<f32> {
        let image = h * w * c;
        let (y, moments) = blocks::images(x.len(), image, &|b, y| {
            let x = &x[b * image..][..image];
            let moments = self.moments(x, c);
            self.norm(&moments, weight, bias).forward(x, y);
            moments
        });
        self.moments.get_or_init(|| moments);
        y
    }

    /// dx, dweight and dbias.
    pub(super) fn backward(
        &self,
        [v, weight, bias, dy]: [&[f32]; 4],
        (_, h, w, c): Dims,
    ) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let image = h * w * c;
        let moments = self.moments.get_or_init(|| {
            let images = v.chunks_exact(image);
            images.map(|x| self.moments(x, c)).collect()
        });
        let (dx, columns) = blocks::images(v.len(), image, &|b, dx| {
            let range = b * image..(b + 1) * image;
            let norm = self.norm(&moments[b], weight, bias);
            norm.backward(&v[range.clone()], &dy[range], dx)
        });
        let (dweight, dbias): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
        (dx, blocks::add_up(c, dweight), blocks::add_up(c, dbias))
    }
}
