//! The CPU's side: one pass each way, a line of the small map at a time.

use crate::ops::{blocks, simd};

/// y, of maps with lines of `w` positions and `c` channels.
pub(super) fn forward(x: &[f32], w: usize, c: usize) -> Vec<f32> {
    blocks::filled(4 * x.len(), 4 * w * c, &|first, block| {
        let lines = x[first * w * c..].chunks_exact(w * c);
        for (pair, line) in block.chunks_exact_mut(4 * w * c).zip(lines) {
            let (upper, lower) = pair.split_at_mut(2 * w * c);
            for (pixels, pixel) in upper.chunks_exact_mut(2 * c).zip(line.chunks_exact(c)) {
                pixels[..c].copy_from_slice(pixel);
                pixels[c..].copy_from_slice(pixel);
            }
            lower.copy_from_slice(upper);
        }
    })
}

/// dx
pub(super) fn backward(dy: &[f32], w: usize, c: usize) -> Vec<f32> {
    blocks::filled(dy.len() / 4, w * c, &|first, block| {
        let pairs = dy[first * 4 * w * c..].chunks_exact(4 * w * c);
        simd::vectorized(
            #[inline(always)]
            || {
                for (line, pair) in block.chunks_exact_mut(w * c).zip(pairs) {
                    let (upper, lower) = pair.split_at(2 * w * c);
                    let squares = upper.chunks_exact(2 * c).zip(lower.chunks_exact(2 * c));
                    for (pixel, (upper, lower)) in line.chunks_exact_mut(c).zip(squares) {
                        let (a, b) = upper.split_at(c);
                        let (d, e) = lower.split_at(c);
                        let square = a.iter().zip(b).zip(d.iter().zip(e));
                        for (dx, ((a, b), (d, e))) in pixel.iter_mut().zip(square) {
                            *dx = (a + b) + (d + e);
                        }
                    }
                }
            },
        )
    })
}
