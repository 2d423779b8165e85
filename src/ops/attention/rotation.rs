//! The rotation of RoPE over the rows of a head, and back.

use crate::ops::simd;

/// Cosines and sines [N,d/2]; both empty where nothing is rotated.
#[derive(Clone, Copy)]
pub(super) struct Rotation<'a> {
    pub cos: &'a [f32],
    pub sin: &'a [f32],
}

impl Rotation<'_> {
    pub(super) const NONE: Self = Self { cos: &[], sin: &[] };

    /// `to` = rows of `from` with their halves rotated, (a, b) → (a·cos − b·sin, a·sin + b·cos).
    pub(super) fn forward(self, from: Rows, to: RowsMut) {
        self.apply(from, to, |sin| sin);
    }

    /// The rotation back, which is its transpose: what it does to gradients.
    pub(super) fn backward(self, from: Rows, to: RowsMut) {
        self.apply(from, to, |sin| -sin);
    }

    #[inline(always)]
    fn apply(self, from: Rows, to: RowsMut, sign: impl Fn(f32) -> f32) {
        let d = from.width;
        let half = d / 2;
        let rows = to.values.chunks_mut(to.stride);
        let rows = rows.zip(from.values.chunks(from.stride));
        if self.cos.is_empty() {
            return rows.for_each(|(to, from)| to[..d].copy_from_slice(&from[..d]));
        }
        let angles = self.cos.chunks_exact(half).zip(self.sin.chunks_exact(half));
        simd::vectorized(
            #[inline(always)]
            || {
                for ((to, from), (cos, sin)) in rows.zip(angles) {
                    let (a, b) = from[..2 * half].split_at(half);
                    let (to_a, to_b) = to[..2 * half].split_at_mut(half);
                    // Equal lengths, visibly to the compiler: otherwise it checks every index and
                    // does not vectorize.
                    let (b, to_b) = (&b[..a.len()], &mut to_b[..a.len()]);
                    let (to_a, cos, sin) = (&mut to_a[..a.len()], &cos[..a.len()], &sin[..a.len()]);
                    for i in 0..a.len() {
                        let sin = sign(sin[i]);
                        to_a[i] = a[i].mul_add(cos[i], -(b[i] * sin));
                        to_b[i] = a[i].mul_add(sin, b[i] * cos[i]);
                    }
                }
            },
        )
    }
}

/// Rows of `width` values, `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub values: &'a [f32],
    pub stride: usize,
    pub width: usize,
}

/// Rows `stride` apart to write to.
pub(super) struct RowsMut<'a> {
    pub values: &'a mut [f32],
    pub stride: usize,
}
