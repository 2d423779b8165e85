//! The CPU's side: one pass each way.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use crate::ops::{blocks, slices};

/// slope·value where x ≤ 0, and 0 there for a slope of 0 even if the value is infinite; the value elsewhere.
#[inline(always)]
fn select(x: f32, value: f32, slope: f32) -> f32 {
    let below = if slope == 0.0 { 0.0 } else { slope * value };
    if x <= 0.0 { below } else { value }
}

/// x where positive, slope·x elsewhere.
pub(super) struct LeakyRelu {
    pub slope: f32,
}

impl CustomOp1 for LeakyRelu {
    fn name(&self) -> &'static str {
        "leaky-relu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slices::of(x, layout)?;
        let slope = self.slope;
        let y = blocks::each(
            x,
            #[inline(always)]
            |x| select(x, x, slope),
        );
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let slope = self.slope;
        let dx = slices::read([x, grad], |[x, grad]| {
            blocks::each_pair(
                x,
                grad,
                #[inline(always)]
                |x, grad| select(x, grad, slope),
            )
        })?;
        slices::gradient(x, dx)
    }
}
