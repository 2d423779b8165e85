//! SwiGLU on the CPU: one pass forward, one backward.

use std::ops::Range;

use crate::ops::{blocks, simd, slices};
use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor};

pub(super) struct SwiGlu;

/// y [N,F] for x [N,2F].
pub(super) fn rows(x: &[f32], y: &mut [f32], f: usize) {
    simd::vectorized(
        #[inline(always)]
        || {
            for (y, x) in y.chunks_exact_mut(f).zip(x.chunks_exact(2 * f)) {
                let (gate, up) = x.split_at(f);
                for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
                    *y = simd::silu(gate) * up;
                }
            }
        },
    )
}

/// `columns` of y [N,F] for these columns of gate and up.
pub(in crate::ops) fn gated(
    [gate, up]: [&[f32]; 2],
    y: &mut [f32],
    f: usize,
    columns: Range<usize>,
) {
    let width = columns.len();
    simd::vectorized(
        #[inline(always)]
        || {
            let parts = gate.chunks_exact(width).zip(up.chunks_exact(width));
            for (y, (gate, up)) in y.chunks_exact_mut(f).zip(parts) {
                let y = &mut y[columns.clone()];
                for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
                    *y = simd::silu(gate) * up;
                }
            }
        },
    )
}

impl CustomOp1 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut dims = layout.dims().to_vec();
        let f = dims.pop().unwrap_or(0) / 2;
        dims.push(f);
        let x = slices::of(x, layout)?;
        let y = blocks::filled(x.len() / 2, f, &|first, y| {
            rows(&x[first * 2 * f..][..2 * y.len()], y, f);
        });
        Ok((CpuStorage::F32(y), Shape::from(dims)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let f = x.dim(D::Minus1)? / 2;
        let dx = slices::read([x, dy], |[x, dy]| {
            blocks::filled(x.len(), 2 * f, &|first, dx| {
                let x = &x[first * 2 * f..][..dx.len()];
                let dy = &dy[first * f..][..dx.len() / 2];
                simd::vectorized(
                    #[inline(always)]
                    || {
                        let rows = dx.chunks_exact_mut(2 * f).zip(x.chunks_exact(2 * f));
                        for ((dx, x), dy) in rows.zip(dy.chunks_exact(f)) {
                            let (dgate, dup) = dx.split_at_mut(f);
                            let (gate, up) = x.split_at(f);
                            for i in 0..f {
                                let s = simd::sigmoid(gate[i]);
                                let silu = gate[i] * s;
                                dup[i] = dy[i] * silu;
                                dgate[i] = dy[i] * up[i] * silu.mul_add(1.0 - s, s);
                            }
                        }
                    },
                )
            })
        })?;
        slices::gradient(x, dx)
    }
}
