//! Layer normalization with weight and bias over the last dimension.
//!
//! y = (x − μ)/√(σ² + eps)·weight + bias, mean and biased variance row by row. x [..,C], weight and
//! bias [C] → [..,C]. Gradients to x, weight and bias.

#[cfg(feature = "cuda")]
pub mod check;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod reference;
#[cfg(test)]
mod tests;

use super::{check as shapes, slices, tape};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};

/// x [..,C]; weight, bias [C].
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let c = shapes::last_dim("layer_norm", "x", x)?;
    shapes::shape("layer_norm", "weight", weight, &[c])?;
    shapes::shape("layer_norm", "bias", bias, &[c])?;
    if slices::meet_kernels(&[x], &[weight, bias]) {
        return tape::apply3(x, weight, bias, LayerNorm { eps });
    }
    tape::plain([x, weight, bias], move |[x, weight, bias]| {
        reference::layer_norm(x, weight, bias, eps)
    })
}

struct LayerNorm {
    eps: f64,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
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
        let y = cpu::forward(x, weight, bias, self.eps);
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
        let (weight, bias) = ((weight, weight_layout), (bias, bias_layout));
        let y = cuda::forward((x, layout), weight, bias, self.eps)?;
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
            return cuda::backward([x, weight, bias], dy, self.eps);
        }
        let (dx, dweight, dbias) = slices::read([x, weight, dy], |[x, weight, dy]| {
            cpu::backward(x, weight, dy, self.eps)
        })?;
        Ok((
            slices::gradient(x, dx)?,
            slices::gradient(weight, dweight)?,
            slices::gradient(bias, dbias)?,
        ))
    }
}
