//! SiLU: y = x·σ(x). Any shape. Gradient: dy·σ(x)·(1 + x·(1 − σ(x))).

mod cpu;
#[cfg(test)]
mod tests;

use super::{slices, tape};
use candle_core::{Result, Tensor};

/// x·σ(x).
pub fn silu(x: &Tensor) -> Result<Tensor> {
    if slices::are_f32_on_cpu(&[x]) {
        return tape::apply1(x, cpu::Silu);
    }
    tape::plain([x], |[x]| x.silu())
}
