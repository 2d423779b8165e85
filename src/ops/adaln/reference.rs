//! Modulated RMSNorm and the gated residual in plain candle operations.

use candle_core::{Result, Tensor};

pub(super) fn rms_norm_modulate(
    x: &Tensor,
    shift: &Tensor,
    scale: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    let rms = (x.sqr()?.mean_keepdim(2)? + eps)?.sqrt()?;
    x.broadcast_div(&rms)?
        .broadcast_mul(&(scale.unsqueeze(1)? + 1.)?)?
        .broadcast_add(&shift.unsqueeze(1)?)
}

pub(super) fn gate_residual(x: &Tensor, gate: &Tensor, branch: &Tensor) -> Result<Tensor> {
    x + branch.broadcast_mul(&gate.unsqueeze(1)?)?
}
