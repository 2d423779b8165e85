//! Batch normalization on the CPU: all positions of all images form one matrix, each column is a
//! group.

use crate::ops::channel_norm::{Norm, moments, reciprocal_deviation};
use crate::ops::{Activation, slices};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use std::sync::Arc;

/// Holds moments that were computed before, because the caller returns them too.
pub(super) struct BatchNorm {
    pub mean: Arc<Vec<f32>>,
    /// 1/√(σ² + eps)
    pub r: Arc<Vec<f32>>,
    pub activation: Activation,
}

/// Mean and biased variance of every channel of x [B,H,W,C].
pub(super) fn channel_moments(x: &Tensor) -> Result<(Vec<f32>, Vec<f32>)> {
    let c = x.dim(3)?;
    slices::read([x], |[x]| moments(x, c, c))
}

impl BatchNorm {
    pub(super) fn new(mean: Vec<f32>, variance: &[f32], eps: f64, activation: Activation) -> Self {
        Self {
            mean: Arc::new(mean),
            r: Arc::new(reciprocal_deviation(variance, eps)),
            activation,
        }
    }

    fn norm<'a>(&'a self, weight: &'a [f32], bias: &'a [f32]) -> Norm<'a> {
        Norm {
            mean: &self.mean,
            r: &self.r,
            weight,
            bias,
            activation: self.activation,
        }
    }
}

impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
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
        let x = slices::of(x, layout)?;
        let weight = slices::of(weight, weight_layout)?;
        let bias = slices::of(bias, bias_layout)?;
        let mut y = vec![0f32; x.len()];
        self.norm(weight, bias).forward(x, &mut y);
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
        let (dx, dweight, dbias) = slices::read([x, weight, bias, dy], |[x, weight, bias, dy]| {
            let mut dx = vec![0f32; x.len()];
            let (dweight, dbias) = self.norm(weight, bias).backward(x, dy, &mut dx);
            (dx, slices::narrowed(dweight), slices::narrowed(dbias))
        })?;
        Ok((
            slices::gradient(x, dx)?,
            slices::gradient(weight, dweight)?,
            slices::gradient(bias, dbias)?,
        ))
    }
}
