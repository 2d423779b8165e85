//! Batch normalization over B, H and W (Ioffe and Szegedy 2015), with an optional activation.
//!
//! y = act((x − μ_c)/√(σ²_c + eps)·weight + bias). x [B,H,W,C]; weight, bias, mean, variance [C] →
//! [B,H,W,C]. In training the statistics are the batch's, and the gradient passes through them;
//! gradients to x, weight and bias.

#[cfg(feature = "cuda")]
pub mod check;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod reference;
#[cfg(test)]
mod tests;

use super::{Activation, check as shapes, slices, tape};
use candle_core::{Result, Tensor, bail};

/// Training: normalizes by the batch's mean and biased variance, and returns both, detached.
///
/// PyTorch's running variance uses the unbiased variance: variance·n/(n−1) with n = B·H·W.
pub fn batch_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    activation: Activation,
) -> Result<(Tensor, Tensor, Tensor)> {
    let [b, h, w, c] = shapes::dims("batch_norm", "x", x, "[B,H,W,C]")?;
    shapes::shape("batch_norm", "weight", weight, &[c])?;
    shapes::shape("batch_norm", "bias", bias, &[c])?;
    if b * h * w < 2 {
        bail!(
            "batch_norm: x has shape {:?}: one value per channel has no variance to train with",
            x.dims()
        );
    }
    if slices::are_f32_on_cpu(&[x, weight, bias]) {
        let x = tape::contiguous(x)?;
        let (mean, variance) = cpu::channel_moments(&x)?;
        let moments = |values: &[f32]| Tensor::new(values, x.device());
        let (mean_tensor, variance_tensor) = (moments(&mean)?, moments(&variance)?);
        let norm = cpu::BatchNorm::new(mean, &variance, eps, activation);
        let y = tape::apply3(&x, weight, bias, norm)?;
        return Ok((y, mean_tensor, variance_tensor));
    }
    #[cfg(feature = "cuda")]
    if slices::meet_kernels(&[x], &[weight, bias]) {
        let x = tape::contiguous(x)?;
        let norm = cuda::BatchNorm::of(&x, eps, activation)?;
        let (mean, variance) = norm.mean_and_variance()?;
        let y = tape::apply3(&x, weight, bias, norm)?;
        return Ok((y, mean, variance));
    }
    reference::batch_norm(x, weight, bias, eps, activation)
}

/// Inference: normalizes by given (running) mean and variance, each [C].
pub fn batch_norm_inference(
    x: &Tensor,
    mean: &Tensor,
    variance: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    activation: Activation,
) -> Result<Tensor> {
    let [_, _, _, c] = shapes::dims("batch_norm_inference", "x", x, "[B,H,W,C]")?;
    for (name, tensor) in [
        ("mean", mean),
        ("variance", variance),
        ("weight", weight),
        ("bias", bias),
    ] {
        shapes::shape("batch_norm_inference", name, tensor, &[c])?;
    }
    let inputs = [x, mean, variance, weight, bias];
    if slices::are_f32_on_cpu(&inputs) && !inputs.iter().any(|t| t.track_op()) {
        let (mean, variance) = (mean.to_vec1()?, variance.to_vec1::<f32>()?);
        let norm = cpu::BatchNorm::new(mean, &variance, eps, activation);
        let (weight, bias) = (weight.contiguous()?, bias.contiguous()?);
        return x.contiguous()?.apply_op3_no_bwd(&weight, &bias, &norm);
    }
    #[cfg(feature = "cuda")]
    if slices::meet_kernels(&[x], &inputs[1..]) && !inputs.iter().any(|t| t.track_op()) {
        let norm = cuda::BatchNorm::given(mean, variance, eps, activation)?;
        let (weight, bias) = (weight.contiguous()?, bias.contiguous()?);
        return x.contiguous()?.apply_op3_no_bwd(&weight, &bias, &norm);
    }
    reference::batch_norm_inference(x, mean, variance, weight, bias, eps, activation)
}
