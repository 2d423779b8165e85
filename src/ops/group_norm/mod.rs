//! Group normalisation and an optional activation, in one pass.
//!
//! y = act((x − μ_g)/√(σ²_g + eps)·weight + bias), with mean and biased variance over the positions and channels
//! of a group, image by image. x [B,H,W,C], weight and bias [C] → [B,H,W,C]. Gradients to x, weight and bias.

mod cpu;
mod reference;
#[cfg(test)]
mod tests;

use super::{Activation, check, slices, tape};
use candle_core::{Result, Tensor, bail};
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
    let [_, _, _, c] = check::dims("group_norm", "x", x, "[B,H,W,C]")?;
    check::shape("group_norm", "weight", weight, &[c])?;
    check::shape("group_norm", "bias", bias, &[c])?;
    if groups == 0 || c % groups != 0 {
        bail!("group_norm: {c} channels do not divide into {groups} groups");
    }
    if slices::are_f32_on_cpu(&[x, weight, bias]) {
        let norm = cpu::GroupNorm {
            groups,
            eps,
            activation,
            moments: OnceLock::new(),
        };
        return tape::apply3(x, weight, bias, norm);
    }
    tape::plain([x, weight, bias], move |[x, weight, bias]| {
        reference::group_norm(x, weight, bias, groups, eps, activation)
    })
}
