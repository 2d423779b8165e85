//! Group normalisation on the CPU: images side by side; the moments are kept for the way back.

use crate::ops::channel_norm::{Norm, moments, reciprocal_deviation};
use crate::ops::{Activation, blocks, slices};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use std::sync::OnceLock;

/// Mean and 1/√(σ² + eps) of an image's groups.
type Moments = (Vec<f32>, Vec<f32>);

pub(super) struct GroupNorm {
    pub groups: usize,
    pub eps: f64,
    pub activation: Activation,
    /// Of every image, from the way there.
    pub moments: OnceLock<Vec<Moments>>,
}

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
}

impl CustomOp3 for GroupNorm {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, h, w, c) = layout.shape().dims4()?;
        let image = h * w * c;
        let x = slices::of(x, layout)?;
        let weight = slices::of(weight, weight_layout)?;
        let bias = slices::of(bias, bias_layout)?;
        let (y, moments) = blocks::images(x.len(), image, |b, y| {
            let x = &x[b * image..][..image];
            let moments = self.moments(x, c);
            self.norm(&moments, weight, bias).forward(x, y);
            moments
        });
        self.moments.get_or_init(|| moments);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (_, h, w, c) = x.dims4()?;
        let image = h * w * c;
        let (dx, dweight, dbias) = slices::read([x, weight, bias, dy], |[v, weight, bias, dy]| {
            let moments = self.moments.get_or_init(|| {
                let images = v.chunks_exact(image);
                images.map(|x| self.moments(x, c)).collect()
            });
            let (dx, columns) = blocks::images(v.len(), image, |b, dx| {
                let range = b * image..(b + 1) * image;
                let norm = self.norm(&moments[b], weight, bias);
                norm.backward(&v[range.clone()], &dy[range], dx)
            });
            let (dweight, dbias): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
            (dx, blocks::add_up(c, dweight), blocks::add_up(c, dbias))
        })?;
        Ok((
            slices::gradient(x, dx)?,
            slices::gradient(weight, dweight)?,
            slices::gradient(bias, dbias)?,
        ))
    }
}
