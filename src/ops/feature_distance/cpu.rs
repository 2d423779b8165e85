//! LPIPS's distance on the CPU. The backward pass recomputes a position's two norms while the
//! position is in cache.

use super::EPS;
use crate::ops::{blocks, simd};

/// ‖x‖ and 1/(‖x‖ + 1e-10), or 0 if the norm is 0.
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

/// The mean over the positions of a, b [P,C].
pub(super) fn forward(a: &[f32], b: &[f32], weight: &[f32]) -> f32 {
    let c = weight.len();
    let positions = a.len() / c;
    let total = blocks::sum(positions, c, 1, &|rows, sum| {
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
    (total[0] / positions as f64) as f32
}

/// With s = ‖x‖ + 1e-10 and g = scale·w·(x̂ − ŷ): dx = g/s − x·(Σ g·x)/(s²·‖x‖).
pub(super) fn toward([x, y, weight]: [&[f32]; 3], scale: f32) -> Vec<f32> {
    let c = weight.len();
    blocks::filled(x.len(), c, &|first, dx| {
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
