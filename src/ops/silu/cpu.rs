//! SiLU on the CPU: one pass each way.

use crate::ops::{blocks, simd, slices};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

/// Elements that are taken as a row.
const ROW: usize = 1024;

pub(super) struct Silu;

impl CustomOp1 for Silu {
    fn name(&self) -> &'static str {
        "silu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slices::of(x, layout)?;
        let y = blocks::filled(x.len(), ROW, |row, y| {
            let x = &x[row * ROW..][..y.len()];
            simd::vectorized(
                #[inline(always)]
                || {
                    for (y, &x) in y.iter_mut().zip(x) {
                        *y = simd::silu(x);
                    }
                },
            )
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dx = slices::read([x, dy], |[x, dy]| {
            blocks::filled(x.len(), ROW, |row, dx| {
                let range = row * ROW..row * ROW + dx.len();
                let (x, dy) = (&x[range.clone()], &dy[range]);
                simd::vectorized(
                    #[inline(always)]
                    || {
                        for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
                            *dx = dy * simd::silu_derivative(x);
                        }
                    },
                )
            })
        })?;
        slices::gradient(x, dx)
    }
}
