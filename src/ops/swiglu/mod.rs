//! The gate of LLaMA's feed-forward layer: y = silu(gate)·up (Shazeer 2020), with x = [gate | up].
//!
//! x [..,2F] → [..,F]. Gradient to x.

#[cfg(feature = "cuda")]
pub mod check;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod reference;
#[cfg(test)]
mod tests;

use super::conv2d::check_elements;
use super::product::{Panels, Plain, times_through};
use super::{Packed, check as shapes, linear_packed, slices, tape};
use candle_core::{Result, Tensor, bail};
pub(super) use cpu::gated;

/// x [..,2F], gate first → [..,F].
pub fn swiglu(x: &Tensor) -> Result<Tensor> {
    let width = shapes::last_dim("swiglu", "x", x)?;
    if width % 2 != 0 {
        bail!("swiglu: x has {width} columns, expected an even number (gate and up)");
    }
    if slices::are_f32_on_cpu(&[x]) {
        return tape::apply1(x, cpu::SwiGlu);
    }
    tape::plain([x], |[x]| reference::swiglu(x))
}

/// swiglu(x·wᵀ) for a weight [2F,I] that does not change, x [..,I] → [..,F]: rows of [2F] never
/// leave the cache.
pub fn linear_swiglu(x: &Tensor, weight: &Tensor, packed: &Packed) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    let width = shapes::last_dim("linear_swiglu", "x", x)?;
    check_elements("linear_swiglu", &[x, weight])?;
    if width != inputs || outputs % 2 != 0 || x.track_op() || !slices::are_f32_on_cpu(&[x, weight])
    {
        return swiglu(&linear_packed(x, weight, None, Some(packed))?);
    }
    let y = slices::read([x, weight], |[x, weight]| {
        let panels = packed.get_or_make(|| Panels::of_outputs(weight, outputs, inputs, 1));
        let f = outputs / 2;
        times_through(&Plain::new(x, inputs), panels, |halves, y, columns| {
            cpu::gated(halves, y, f, columns);
        })
    })?;
    let mut shape = x.dims().to_vec();
    shape.pop();
    shape.push(outputs / 2);
    Tensor::from_vec(y, shape, x.device())
}
