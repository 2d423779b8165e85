//! Layer normalization on the CPU. The backward pass recomputes a row's moments while the row is in
//! cache.

use crate::ops::{blocks, simd, slices};

/// Mean and 1/√(σ² + eps) of a row.
#[inline(always)]
fn moments(x: &[f32], eps: f64) -> (f32, f32) {
    let count = x.len() as f32;
    let mean = simd::sum(x, |x| x) / count;
    let variance = simd::sum(x, |x| (x - mean) * (x - mean)) / count;
    (mean, (1.0 / (f64::from(variance) + eps).sqrt()) as f32)
}

/// y for rows x [R,C].
pub(super) fn forward(x: &[f32], weight: &[f32], bias: &[f32], eps: f64) -> Vec<f32> {
    let c = weight.len();
    blocks::filled(x.len(), c, &|first, y| {
        let x = &x[first * c..][..y.len()];
        simd::vectorized(
            #[inline(always)]
            || {
                let (weight, bias) = (&weight[..c], &bias[..c]);
                for (y, x) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
                    let (mean, r) = moments(x, eps);
                    for i in 0..c {
                        y[i] = ((x[i] - mean) * r).mul_add(weight[i], bias[i]);
                    }
                }
            },
        )
    })
}

/// dx, dweight and dbias.
pub(super) fn backward(
    x: &[f32],
    weight: &[f32],
    dy: &[f32],
    eps: f64,
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let c = weight.len();
    let (dx, mut dweight) = blocks::filled_and_summed(x.len(), c, 2 * c, &|first, dx, sums| {
        let range = first * c..first * c + dx.len();
        let (x, dy) = (&x[range.clone()], &dy[range]);
        simd::vectorized(
            #[inline(always)]
            || rows_backward(x, weight, dy, eps, dx, sums),
        )
    });
    let dbias = dweight.split_off(c);
    (dx, slices::narrowed(dweight), slices::narrowed(dbias))
}

/// Rows of dx, and dweight and dbias added to `sums`. With x̂ = (x − μ)·r and g = dy·weight:
/// dx = r·(g − mean(g) − x̂·mean(g·x̂)), dweight = Σ dy·x̂, dbias = Σ dy.
#[inline(always)]
fn rows_backward(
    x: &[f32],
    weight: &[f32],
    dy: &[f32],
    eps: f64,
    dx: &mut [f32],
    sums: &mut [f32],
) {
    let c = weight.len();
    let (dweight, dbias) = sums.split_at_mut(c);
    let (dweight, dbias) = (&mut dweight[..c], &mut dbias[..c]);
    let rows = dx.chunks_exact_mut(c).zip(x.chunks_exact(c));
    for ((dx, x), dy) in rows.zip(dy.chunks_exact(c)) {
        let (mean, r) = moments(x, eps);
        let sums = simd::sum3(x, dy, weight, |x, dy, w| {
            let normal = (x - mean) * r;
            [dy * w, dy * w * normal]
        });
        let [a, b] = sums.map(|sum| sum / c as f32);
        for i in 0..c {
            let normal = (x[i] - mean) * r;
            dweight[i] = dy[i].mul_add(normal, dweight[i]);
            dbias[i] += dy[i];
            let centred = dy[i].mul_add(weight[i], -a);
            dx[i] = r * normal.mul_add(-b, centred);
        }
    }
}
