//! SiLU on the CPU: one pass each way.

use crate::ops::{blocks, simd, slices};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

pub(super) struct Silu;

impl CustomOp1 for Silu {
    fn name(&self) -> &'static str {
        "silu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slices::of(x, layout)?;
        let y = blocks::each(x, simd::silu);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dx = slices::read([x, dy], |[x, dy]| {
            blocks::each_pair(
                x,
                dy,
                #[inline(always)]
                |x, dy| dy * simd::silu_derivative(x),
            )
        })?;
        slices::gradient(x, dx)
    }
}
