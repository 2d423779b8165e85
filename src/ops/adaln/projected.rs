//! A linear map of `rms_norm_modulate`'s result for rows x = Σ_j u_j·s_j + p that are made of few
//! inputs u, on the CPU and without gradients.
//!
//! With r = 1/√(mean(x²) + eps) and s'_j, p', b' the map's results for s_j·(1 + scale),
//! p·(1 + scale) and shift: y = r·(Σ_j u_j·s'_j + p') + b', K multiply-adds a value instead of C.

use candle_core::{Result, Tensor, bail};

use super::cpu::reciprocal_rms;
use crate::ops::product::{Panels, times_into};
use crate::ops::{blocks, check, simd, slices};

/// Inputs u [B,N,K], x [B,N,C] made of them, and `projected` [B,K+P+1,O]: an image's s'_j, its p'
/// (P = N, or 1 if the same for every row) and b' → y [B,N,O].
pub fn rms_norm_projected(u: &Tensor, x: &Tensor, projected: &Tensor, eps: f64) -> Result<Tensor> {
    const NAME: &str = "rms_norm_projected";
    let [b, n, k] = check::dims(NAME, "u", u, "[B,N,K]")?;
    let [_, _, c] = check::dims(NAME, "x", x, "[B,N,C]")?;
    check::shape(NAME, "x", x, &[b, n, c])?;
    let [_, rows, o] = check::dims(NAME, "projected", projected, "[B,K+P+1,O]")?;
    check::shape(NAME, "projected", projected, &[b, rows, o])?;
    if rows != k + 2 && rows != k + n + 1 {
        bail!(
            "{NAME}: {rows} projected rows, expected {} or {}",
            k + 2,
            k + n + 1
        );
    }
    let y = slices::read([u, x, projected], |[u, x, projected]| {
        let image = |image: usize, y: &mut [f32]| {
            let (u, x) = (&u[image * n * k..][..n * k], &x[image * n * c..][..n * c]);
            let projected = &projected[image * rows * o..][..rows * o];
            let (sources, rest) = projected.split_at(k * o);
            let (added, shift) = rest.split_at(rest.len() - o);
            times_into(y, u, &Panels::of_rows(sources, o));
            finish(y, x, added, shift, eps);
        };
        blocks::images(b * n * o, n * o, &image).0
    })?;
    Tensor::from_vec(y, (b, n, o), u.device())
}

/// y = r·(y + p') + b'.
fn finish(y: &mut [f32], x: &[f32], added: &[f32], shift: &[f32], eps: f64) {
    let o = shift.len();
    let c = x.len() / (y.len() / o);
    simd::vectorized(
        #[inline(always)]
        || {
            let rows = y.chunks_exact_mut(o).zip(x.chunks_exact(c));
            for ((y, x), added) in rows.zip(added.chunks_exact(o).cycle()) {
                let r = reciprocal_rms(x, eps);
                for ((y, added), shift) in y.iter_mut().zip(added).zip(shift) {
                    *y = (*y + added).mul_add(r, *shift);
                }
            }
        },
    );
}
