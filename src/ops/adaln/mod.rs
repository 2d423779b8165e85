//! The two ends of an AdaLN-Zero branch (DiT, section 3.2; the paper's section 4.2), with one row
//! of shift, scale and gate per image.
//!
//! - `rms_norm_modulate`: y = x/√(mean(x²) + eps)·(1 + scale) + shift, the mean over C (RMSNorm
//!   without weight).
//! - `gate_residual`: y = x + gate·branch.
//!
//! x, branch [B,N,C]; shift, scale, gate [B,C] → [B,N,C]. Gradients to all inputs; those of [B,C]
//! are sums over N.

#[cfg(feature = "cuda")]
pub mod check;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod frozen;
mod projected;
mod reference;
#[cfg(test)]
mod tests;

use super::{check as shapes, slices, tape};
use candle_core::{Result, Tensor};
pub use frozen::{Normed, gated_linear, modulated_linear, modulated_swiglu};
pub use projected::rms_norm_projected;

/// x [B,N,C]; shift, scale [B,C].
pub fn rms_norm_modulate(x: &Tensor, shift: &Tensor, scale: &Tensor, eps: f64) -> Result<Tensor> {
    let [b, _, c] = shapes::dims("rms_norm_modulate", "x", x, "[B,N,C]")?;
    shapes::shape("rms_norm_modulate", "shift", shift, &[b, c])?;
    shapes::shape("rms_norm_modulate", "scale", scale, &[b, c])?;
    if slices::are_f32_on_cpu(&[x, shift, scale]) {
        return tape::apply3(x, shift, scale, cpu::RmsNormModulate { eps });
    }
    tape::plain([x, shift, scale], move |[x, shift, scale]| {
        reference::rms_norm_modulate(x, shift, scale, eps)
    })
}

/// x, branch [B,N,C]; gate [B,C].
pub fn gate_residual(x: &Tensor, gate: &Tensor, branch: &Tensor) -> Result<Tensor> {
    let [b, n, c] = shapes::dims("gate_residual", "x", x, "[B,N,C]")?;
    shapes::shape("gate_residual", "gate", gate, &[b, c])?;
    shapes::shape("gate_residual", "branch", branch, &[b, n, c])?;
    if slices::are_f32_on_cpu(&[x, gate, branch]) {
        return tape::apply3(x, gate, branch, cpu::GateResidual);
    }
    tape::plain([x, gate, branch], |[x, gate, branch]| {
        reference::gate_residual(x, gate, branch)
    })
}
