//! One head of one image: y = softmax(q·kᵀ/√d)·v and its gradient, a block of queries at a time.
//!
//! No [N,N] matrix outlives the call. What is kept for the way back is the log of each query's sum
//! of exponentials; the weights are computed again from it, at the price of one product more than
//! keeping them would cost.

use super::rotation::{Rotation, Rows, RowsMut};
use crate::ops::product::{Matrix, Panels, multiply, room, times_into};
use crate::ops::simd;
use std::cell::RefCell;
use std::ops::Range;

/// Queries a block: their weights against a few hundred keys stay in a core's second cache.
const BLOCK: usize = 128;

/// Rotated queries and keys, and values: [N,d] each.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    n: usize,
    d: usize,
}

impl<'a> Head<'a> {
    pub(super) fn new(q: &'a [f32], k: &'a [f32], v: &'a [f32], d: usize) -> Self {
        let n = q.len() / d;
        Self { q, k, v, n, d }
    }

    fn matrix<'v>(&self, values: &'v [f32]) -> Matrix<'v> {
        Matrix::dense(values, (values.len() / self.d, self.d))
    }

    /// The elements of a block of rows.
    fn elements(&self, block: &Range<usize>) -> Range<usize> {
        block.start * self.d..block.end * self.d
    }

    /// q·kᵀ of a block of queries, not scaled.
    fn scores(&self, block: &Range<usize>, out: &mut [f32]) {
        let q = self.matrix(&self.q[self.elements(block)]);
        multiply(out, self.n, q, self.matrix(self.k).transposed(), false);
    }

    /// With weights P and dP = dy·vᵀ: dS = P·(dP − Σ dy·y)/√d, dq = dS·k, dk = dSᵀ·q, dv = Pᵀ·dy;
    /// y, dy [N,d]. Returns dq and dk, of the rotated q and k, and dv.
    pub(super) fn backward(&self, y: &[f32], dy: &[f32], log_sums: &[f32]) -> [Vec<f32>; 3] {
        let (n, d) = (self.n, self.d);
        let [mut dq, mut dk, mut dv] = [0; 3].map(|_| vec![0f32; n * d]);
        let [mut weights, mut dscores] = [0; 2].map(|_| vec![0f32; BLOCK.min(n) * n]);
        for block in blocks(self.n) {
            let elements = self.elements(&block);
            let weights = &mut weights[..block.len() * n];
            let dscores = &mut dscores[..block.len() * n];
            let (y, dy) = (&y[elements.clone()], &dy[elements.clone()]);
            self.scores(&block, weights);
            multiply(
                dscores,
                n,
                self.matrix(dy),
                self.matrix(self.v).transposed(),
                false,
            );
            let upstream = y.chunks_exact(d).zip(dy.chunks_exact(d));
            softmax_backward(
                weights,
                dscores,
                scale(self.d),
                &log_sums[block.clone()],
                upstream,
            );
            let size = (block.len(), n);
            let (weights, dscores) = (Matrix::dense(weights, size), Matrix::dense(dscores, size));
            let later = block.start > 0;
            multiply(
                &mut dq[elements.clone()],
                d,
                dscores,
                self.matrix(self.k),
                false,
            );
            let q = self.matrix(&self.q[elements]);
            multiply(&mut dk, d, dscores.transposed(), q, later);
            multiply(&mut dv, d, weights.transposed(), self.matrix(dy), later);
        }
        [dq, dk, dv]
    }
}

fn scale(d: usize) -> f32 {
    (1.0 / (d as f64).sqrt()) as f32
}

fn blocks(n: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(BLOCK).map(move |i| i..n.min(i + BLOCK))
}

/// What a thread keeps from head to head: new buffers would be zeroed for each, which took, with
/// those of the other operations, a twentieth of the demo's sampling.
struct Scratch {
    q: Vec<f32>,
    k: Vec<f32>,
    keys: Panels,
    values: Panels,
    weights: Vec<f32>,
    y: Vec<f32>,
    /// The largest score and the sum of exponentials of each query of a block.
    sums: [(f32, f32); BLOCK],
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch {
            q: Vec::new(),
            k: Vec::new(),
            keys: Panels::EMPTY,
            values: Panels::EMPTY,
            weights: Vec::new(),
            y: Vec::new(),
            sums: [(0.0, 0.0); BLOCK],
        })
    };
}

/// y [N,d] of a head's `n` rows of q, k and v, of which q and k are rotated as they are read, on
/// this thread. Returns the logs of the sums of exponentials [N].
pub(super) fn forward([q, k, v]: [Rows; 3], n: usize, rotation: Rotation, y: RowsMut) -> Vec<f32> {
    SCRATCH.with_borrow_mut(|scratch| scratch.forward([q, k, v], n, rotation, y))
}

impl Scratch {
    fn forward(
        &mut self,
        [q, k, v]: [Rows; 3],
        n: usize,
        rotation: Rotation,
        y: RowsMut,
    ) -> Vec<f32> {
        let d = q.width;
        for (from, to) in [(q, &mut self.q), (k, &mut self.k)] {
            let values = room(to, n * d);
            rotation.forward(from, RowsMut { values, stride: d });
        }
        self.keys.refill_transposed(&self.k, (d, n));
        self.values.refill(v.values, (n, d), v.stride);
        let mut log_sums = Vec::with_capacity(n);
        let mut to = y.values.chunks_mut(y.stride);
        for block in blocks(n) {
            let weights = room(&mut self.weights, block.len() * n);
            times_into(weights, &self.q[block.start * d..block.end * d], &self.keys);
            exponentials(weights, n, scale(d), &mut self.sums);
            let y = room(&mut self.y, block.len() * d);
            times_into(y, weights, &self.values);
            let rows = y.chunks_exact(d).zip(&self.sums);
            for ((y, (max, sum)), to) in rows.zip(to.by_ref()) {
                let reciprocal = 1.0 / sum;
                let row = to.iter_mut().zip(y);
                row.for_each(|(to, y)| *to = y * reciprocal);
                log_sums.push(max + sum.ln());
            }
        }
        log_sums
    }
}

/// Rows of `n` scores become exp(scale·score − m), with m the largest times `scale`; `sums` gets
/// the pair (m, sum) of each row. A row of the result is divided by the sum later: it is shorter
/// than the row of weights.
fn exponentials(rows: &mut [f32], n: usize, scale: f32, sums: &mut [(f32, f32)]) {
    simd::vectorized(
        #[inline(always)]
        || {
            for (row, sum) in rows.chunks_exact_mut(n).zip(sums) {
                let max = scale * simd::max(row);
                *sum = (max, simd::exponentials(row, scale, max));
            }
        },
    );
}

/// Rows of scores become their weights, and rows of the weights' gradients those of the scores.
fn softmax_backward<'a>(
    rows: &mut [f32],
    gradients: &mut [f32],
    scale: f32,
    log_sums: &[f32],
    upstream: impl Iterator<Item = (&'a [f32], &'a [f32])>,
) {
    let n = rows.len() / log_sums.len();
    simd::vectorized(
        #[inline(always)]
        || {
            let rows = rows.chunks_exact_mut(n).zip(gradients.chunks_exact_mut(n));
            for (((row, gradient), log_sum), (y, dy)) in rows.zip(log_sums).zip(upstream) {
                let mean = simd::sum2(y, dy, |y, dy| y * dy);
                for (x, g) in row.iter_mut().zip(gradient) {
                    *x = simd::exp(x.mul_add(scale, -log_sum));
                    *g = (*g - mean) * (*x * scale);
                }
            }
        },
    )
}
