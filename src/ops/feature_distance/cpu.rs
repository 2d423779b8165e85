//! LPIPS's distance on the CPU: a position's two norms are taken again on the way back, while the position is at hand.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};

use super::EPS;
use crate::ops::{blocks, simd, slices};

pub(super) struct FeatureDistance;

/// ‖x‖ and 1/(‖x‖ + 1e-10), which is 0 where the norm is.
#[inline(always)]
fn norm(x: &[f32]) -> (f32, f32) {
    let norm = simd::sum(x, |x| x * x).sqrt();
    let inverse = if norm > 0.0 {
        1.0 / (norm + EPS as f32)
    } else {
        0.0
    };
    (norm, inverse)
}

impl CustomOp3 for FeatureDistance {
    fn name(&self) -> &'static str {
        "feature_distance"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (a, b) = (slices::of(a, a_layout)?, slices::of(b, b_layout)?);
        let weight = slices::of(weight, weight_layout)?;
        let c = weight.len();
        let positions = a.len() / c;
        let total = blocks::sum(positions, c, 1, |rows, sum| {
            let range = rows.start * c..rows.end * c;
            let (a, b) = (&a[range.clone()], &b[range]);
            simd::vectorized(
                #[inline(always)]
                || {
                    for (a, b) in a.chunks_exact(c).zip(b.chunks_exact(c)) {
                        let ((_, p), (_, q)) = (norm(a), norm(b));
                        let [squares] = simd::sum3(a, b, weight, |a, b, w| {
                            let difference = a * p - b * q;
                            [w * difference * difference]
                        });
                        sum[0] += squares;
                    }
                },
            )
        });
        let mean = total[0] / positions as f64;
        Ok((CpuStorage::F32(vec![mean as f32]), Shape::from(())))
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let scale = 2.0 * dy.to_scalar::<f32>()? / (a.elem_count() / weight.elem_count()) as f32;
        let gradient = |x: &Tensor, y: &Tensor| match x.track_op() {
            true => slices::gradient(x, slices::read([x, y, weight], |s| toward(s, scale))?),
            false => Ok(None),
        };
        Ok((gradient(a, b)?, gradient(b, a)?, None))
    }
}

/// With s = ‖x‖ + 1e-10 and g = scale·w·(x̂ − ŷ): dx = g/s − x·(Σ g·x)/(s²·‖x‖).
fn toward([x, y, weight]: [&[f32]; 3], scale: f32) -> Vec<f32> {
    let c = weight.len();
    blocks::filled(x.len(), c, |first, dx| {
        let range = first * c..first * c + dx.len();
        let (x, y) = (&x[range.clone()], &y[range]);
        simd::vectorized(
            #[inline(always)]
            || {
                let weight = &weight[..c];
                let rows = dx.chunks_exact_mut(c).zip(x.chunks_exact(c));
                for ((dx, x), y) in rows.zip(y.chunks_exact(c)) {
                    let ((size, p), (_, q)) = (norm(x), norm(y));
                    if size == 0.0 {
                        continue;
                    }
                    for i in 0..c {
                        dx[i] = scale * weight[i] * (x[i] * p - y[i] * q) * p;
                    }
                    let along = simd::sum2(dx, x, |d, x| d * x) * p / size;
                    for i in 0..c {
                        dx[i] = x[i].mul_add(-along, dx[i]);
                    }
                }
            },
        )
    })
}
