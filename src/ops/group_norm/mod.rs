//! Group normalization with an optional activation, in one pass.
//!
//! y = act((x − μ_g)/√(σ²_g + eps)·weight + bias), with mean and biased variance over the positions
//! and channels of a group, for each image. x [B,H,W,C], weight and bias [C] → [B,H,W,C]. Gradients
//! to x, weight and bias.

#[cfg(feature = "cuda")]
pub mod check;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod reference;
#[cfg(test)]
mod tests;

#[cfg(feature = "cuda")]
use super::channel_norm::{cuda::Tiles, left};
use super::{Activation, check as shapes, slices, tape};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
#[cfg(feature = "cuda")]
use std::sync::Mutex;
use std::sync::OnceLock;

/// x [B,H,W,C]; weight, bias [C]; `groups` divides C.
pub fn group_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
    activation: Activation,
) -> Result<Tensor> {
    let [_, _, _, c] = shapes::dims("group_norm", "x", x, "[B,H,W,C]")?;
    shapes::shape("group_norm", "weight", weight, &[c])?;
    shapes::shape("group_norm", "bias", bias, &[c])?;
    if groups == 0 || c % groups != 0 {
        bail!("group_norm: {c} channels cannot be divided into {groups} groups");
    }
    if slices::meet_kernels(&[x], &[weight, bias]) {
        let norm = GroupNorm {
            groups,
            eps,
            activation,
            moments: OnceLock::new(),
            #[cfg(feature = "cuda")]
            moments_on_gpu: OnceLock::new(),
            #[cfg(feature = "cuda")]
            tiles: Mutex::new(left::take(x)),
        };
        return tape::apply3(x, weight, bias, norm);
    }
    tape::plain([x, weight, bias], move |[x, weight, bias]| {
        reference::group_norm(x, weight, bias, groups, eps, activation)
    })
}

struct GroupNorm {
    groups: usize,
    eps: f64,
    activation: Activation,
    /// One entry per image, from the forward pass.
    moments: OnceLock<Vec<cpu::Moments>>,
    /// [3,B,G]
    #[cfg(feature = "cuda")]
    moments_on_gpu: OnceLock<Tensor>,
    /// Those of x, for the forward pass.
    #[cfg(feature = "cuda")]
    tiles: Mutex<Option<Tiles>>,
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
        let x = slices::of(x, layout)?;
        let weight = slices::of(weight, weight_layout)?;
        let bias = slices::of(bias, bias_layout)?;
        let y = self.forward(x, weight, bias, layout.shape().dims4()?);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        layout: &Layout,
        weight: &candle_core::CudaStorage,
        weight_layout: &Layout,
        bias: &candle_core::CudaStorage,
        bias_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let y = cuda::forward(
            self,
            (x, layout),
            (weight, weight_layout),
            (bias, bias_layout),
        )?;
        Ok((y, layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return cuda::backward(self, [x, weight, bias], dy);
        }
        let shape = x.dims4()?;
        let (dx, dweight, dbias) =
            slices::read([x, weight, bias, dy], |values| self.backward(values, shape))?;
        Ok((
            slices::gradient(x, dx)?,
            slices::gradient(weight, dweight)?,
            slices::gradient(bias, dbias)?,
        ))
    }
}
