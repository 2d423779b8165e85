//! Group normalization in plain candle operations.

use crate::ops::Activation;
use candle_core::{Result, Tensor};

pub(super) fn group_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
    activation: Activation,
) -> Result<Tensor> {
    let (b, h, w, c) = x.dims4()?;
    let grouped = x.reshape((b, h * w, groups, c / groups))?;
    let centred = grouped.broadcast_sub(&grouped.mean_keepdim(3)?.mean_keepdim(1)?)?;
    let variance = centred.sqr()?.mean_keepdim(3)?.mean_keepdim(1)?;
    let normal = centred
        .broadcast_div(&(variance + eps)?.sqrt()?)?
        .reshape((b, h, w, c))?;
    activation.reference(&normal.broadcast_mul(weight)?.broadcast_add(bias)?)
}
