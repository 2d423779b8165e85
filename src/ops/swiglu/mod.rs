//! The gate of LLaMA's feed-forward layer: y = silu(gate)·up (Shazeer 2020), with x = [gate | up].
//!
//! x [..,2F] → [..,F]. Gradient to x.

mod cpu;
mod reference;
#[cfg(test)]
mod tests;

use super::{check, slices, tape};
use candle_core::{Result, Tensor, bail};

/// x [..,2F], gate first → [..,F].
pub fn swiglu(x: &Tensor) -> Result<Tensor> {
    let width = check::last_dim("swiglu", "x", x)?;
    if width % 2 != 0 {
        bail!("swiglu: x has {width} columns, expected an even number (gate and up)");
    }
    if slices::are_f32_on_cpu(&[x]) {
        return tape::apply1(x, cpu::SwiGlu);
    }
    tape::plain([x], |[x]| reference::swiglu(x))
}
