//! Layer normalisation with weight and bias over the last dimension.
//!
//! y = (x − μ)/√(σ² + eps)·weight + bias, mean and biased variance row by row. x [..,C], weight and bias [C] → [..,C].
//! Gradients to x, weight and bias.

mod cpu;
mod reference;
#[cfg(test)]
mod tests;

use super::{check, slices, tape};
use candle_core::{Result, Tensor};

/// x [..,C]; weight, bias [C].
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let c = check::last_dim("layer_norm", "x", x)?;
    check::shape("layer_norm", "weight", weight, &[c])?;
    check::shape("layer_norm", "bias", bias, &[c])?;
    if slices::are_f32_on_cpu(&[x, weight, bias]) {
        return tape::apply3(x, weight, bias, cpu::LayerNorm { eps });
    }
    tape::plain([x, weight, bias], move |[x, weight, bias]| {
        reference::layer_norm(x, weight, bias, eps)
    })
}
