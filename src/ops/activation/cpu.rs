//! The CPU's side: one pass each way.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use crate::ops::{blocks, simd, slices};

/// Elements that are taken as a row.
const ROW: usize = 1024;

/// out = slope·value where x ≤ 0, and 0 there for a slope of 0 even if the value is infinite; value elsewhere.
#[inline(always)]
fn select(out: &mut [f32], x: &[f32], value: &[f32], slope: f32) {
    for ((out, &x), &value) in out.iter_mut().zip(x).zip(value) {
        let below = if slope == 0.0 { 0.0 } else { slope * value };
        *out = if x <= 0.0 { below } else { value };
    }
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
        let y = blocks::filled(x.len(), ROW, |row, y| {
            let x = &x[row * ROW..][..y.len()];
            simd::vectorized(
                #[inline(always)]
                || select(y, x, x, slope),
            )
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let slope = self.slope;
        let dx = slices::read([x, grad], |[x, grad]| {
            blocks::filled(x.len(), ROW, |row, dx| {
                let range = row * ROW..row * ROW + dx.len();
                let (x, grad) = (&x[range.clone()], &grad[range]);
                simd::vectorized(
                    #[inline(always)]
                    || select(dx, x, grad, slope),
                )
            })
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}
