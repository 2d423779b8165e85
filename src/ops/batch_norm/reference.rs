//! Batch normalization in plain candle operations.

use crate::ops::Activation;
use candle_core::{Result, Tensor};

pub(super) fn batch_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    activation: Activation,
) -> Result<(Tensor, Tensor, Tensor)> {
    let mean = x.flatten_to(2)?.mean(0)?;
    let variance = x.broadcast_sub(&mean)?.sqr()?.flatten_to(2)?.mean(0)?;
    let y = batch_norm_inference(x, &mean, &variance, weight, bias, eps, activation)?;
    Ok((y, mean.detach(), variance.detach()))
}

pub(super) fn batch_norm_inference(
    x: &Tensor,
    mean: &Tensor,
    variance: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    activation: Activation,
) -> Result<Tensor> {
    let normal = x
        .broadcast_sub(mean)?
        .broadcast_div(&(variance + eps)?.sqrt()?)?;
    activation.reference(&normal.broadcast_mul(weight)?.broadcast_add(bias)?)
}
