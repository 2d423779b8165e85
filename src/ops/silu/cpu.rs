//! SiLU on the CPU: one pass forward, one backward.

use crate::ops::{blocks, simd};

pub(super) fn forward(x: &[f32]) -> Vec<f32> {
    blocks::each(x, simd::silu)
}

/// dx
pub(super) fn backward(x: &[f32], dy: &[f32]) -> Vec<f32> {
    blocks::each_pair(
        x,
        dy,
        #[inline(always)]
        |x, dy| dy * simd::silu_derivative(x),
    )
}
