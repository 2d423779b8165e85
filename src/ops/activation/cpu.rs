//! The CPU version: one pass forward, one backward.

use crate::ops::blocks;

/// slope·value if x ≤ 0 (0 for a slope of 0, even if the value is infinite), else the value.
#[inline(always)]
fn select(x: f32, value: f32, slope: f32) -> f32 {
    let below = if slope == 0.0 { 0.0 } else { slope * value };
    if x <= 0.0 { below } else { value }
}

pub(super) fn forward(x: &[f32], slope: f32) -> Vec<f32> {
    blocks::each(
        x,
        #[inline(always)]
        |x| select(x, x, slope),
    )
}

/// dx
pub(super) fn backward(x: &[f32], dy: &[f32], slope: f32) -> Vec<f32> {
    blocks::each_pair(
        x,
        dy,
        #[inline(always)]
        |x, dy| select(x, dy, slope),
    )
}
