//! The nearest code of every row: argmin_k ‖v − e_k‖², exact.
//!
//! First, the scores s_k = v·e_k − ½‖e_k‖² are computed in f32, a block of rows against panels of
//! 16 codes. Only codes whose score is within twice the rounding bound of the largest can be the
//! true best. If there is more than one, their distances are compared in f64, and the lowest index
//! wins a tie. So the code of a row depends only on the row and the codebook: not on the batch, the
//! threads, or the machine.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Codes per panel.
const PANEL: usize = 16;
/// Rows whose scores against a panel stay in registers: 6 × 16 sums use 12 of AVX2's 16 registers.
const GROUP: usize = 6;
/// Rows that share one pass over the codebook.
const BLOCK: usize = 4 * GROUP;

/// A codebook [K,d] laid out for the search.
pub struct Nearest<'a> {
    embedding: &'a [f32],
    d: usize,
    /// [K/16][d][16], padded with zeros after the last code
    panels: Vec<[f32; PANEL]>,
    /// −½‖e_k‖² [K/16][16], padded with −∞ after the last code
    offsets: Vec<[f32; PANEL]>,
    largest_norm: f64,
}

impl<'a> Nearest<'a> {
    pub fn new(embedding: &'a [f32], d: usize) -> Self {
        let k = embedding.len() / d;
        let count = k.div_ceil(PANEL);
        let mut panels = vec![[0f32; PANEL]; count * d];
        let mut offsets = vec![[f32::NEG_INFINITY; PANEL]; count];
        let mut largest = 0f64;
        for (code, e) in embedding.chunks_exact(d).enumerate() {
            let (panel, lane) = (code / PANEL, code % PANEL);
            for (entry, x) in panels[panel * d..].iter_mut().zip(e) {
                entry[lane] = *x;
            }
            let square = norm2(e);
            offsets[panel][lane] = (-0.5 * square) as f32;
            largest = largest.max(square);
        }
        Self {
            embedding,
            d,
            panels,
            offsets,
            largest_norm: largest.sqrt(),
        }
    }

    /// The code of every row of [R,d]; 0 for a row that is not finite.
    pub fn search(&self, rows: &[f32], codes: &mut [u32]) {
        rows.par_chunks(BLOCK * self.d)
            .zip(codes.par_chunks_mut(BLOCK))
            .for_each_init(
                || Scratch {
                    rows: vec![[0f32; GROUP]; BLOCK / GROUP * self.d],
                    scores: vec![[0f32; PANEL]; self.offsets.len() * BLOCK],
                },
                |scratch, (rows, codes)| {
                    Arch::new().dispatch(SearchBlock {
                        nearest: self,
                        rows,
                        codes,
                        scratch,
                    });
                },
            );
    }

    /// Error bound of a score of `row`: each of the d + 2 roundings is at most 2⁻²⁴ of the sum of
    /// absolute values so far, Σ|v_i e_i| + ½‖e‖² ≤ ‖v‖‖e‖ + ½‖e‖².
    fn rounding(&self, row: &[f32]) -> f32 {
        let e = self.largest_norm;
        let size = norm2(row).sqrt() * e + 0.5 * e * e;
        ((self.d + 2) as f64 * size * (1.01 / 16_777_216.0)) as f32
    }

    fn distance(&self, row: &[f32], code: usize) -> f64 {
        let e = &self.embedding[code * self.d..(code + 1) * self.d];
        row.iter()
            .zip(e)
            .map(|(v, e)| (f64::from(*v) - f64::from(*e)).powi(2))
            .sum()
    }
}

fn norm2(x: &[f32]) -> f64 {
    x.iter().map(|x| f64::from(*x).powi(2)).sum()
}

/// A thread's buffers, reused for every block.
struct Scratch {
    /// [BLOCK/GROUP][d][GROUP]
    rows: Vec<[f32; GROUP]>,
    /// [K/16][BLOCK][16]
    scores: Vec<[f32; PANEL]>,
}

struct SearchBlock<'a> {
    nearest: &'a Nearest<'a>,
    /// At most [`BLOCK`] rows.
    rows: &'a [f32],
    codes: &'a mut [u32],
    scratch: &'a mut Scratch,
}

impl WithSimd for SearchBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self {
            nearest,
            rows,
            codes,
            scratch,
        } = self;
        let d = nearest.d;
        scratch.rows.fill([0.0; GROUP]);
        for (r, row) in rows.chunks_exact(d).enumerate() {
            let group = &mut scratch.rows[r / GROUP * d..][..d];
            for (entry, x) in group.iter_mut().zip(row) {
                entry[r % GROUP] = *x;
            }
        }
        let groups = codes.len().div_ceil(GROUP);
        let mut best = [[f32::NEG_INFINITY; PANEL]; BLOCK];
        let panels = nearest.panels.chunks_exact(d).zip(&nearest.offsets);
        for ((panel, offset), scores) in panels.zip(scratch.scores.chunks_exact_mut(BLOCK)) {
            for (group, rows) in scratch.rows.chunks_exact(d).take(groups).enumerate() {
                let mut sums = [*offset; GROUP];
                for (e, v) in panel.iter().zip(rows) {
                    for r in 0..GROUP {
                        for l in 0..PANEL {
                            sums[r][l] = v[r].mul_add(e[l], sums[r][l]);
                        }
                    }
                }
                for (r, sums) in sums.iter().enumerate() {
                    let row = group * GROUP + r;
                    scores[row] = *sums;
                    for l in 0..PANEL {
                        best[row][l] = best[row][l].max(sums[l]);
                    }
                }
            }
        }
        for (r, (row, code)) in rows.chunks_exact(d).zip(codes).enumerate() {
            let largest = best[r].iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let least = largest - 2.0 * nearest.rounding(row);
            let candidates = scratch
                .scores
                .iter()
                .skip(r)
                .step_by(BLOCK)
                .enumerate()
                .filter(|(_, scores)| scores.iter().fold(false, |any, s| any | (*s >= least)))
                .flat_map(|(panel, scores)| {
                    (0..PANEL)
                        .filter(|l| scores[*l] >= least)
                        .map(move |l| panel * PANEL + l)
                });
            *code = decide(nearest, row, candidates);
        }
    }
}

/// The candidate with the smallest distance; the first of equals.
#[inline(always)]
fn decide(nearest: &Nearest, row: &[f32], mut candidates: impl Iterator<Item = usize>) -> u32 {
    let codes = nearest.embedding.len() / nearest.d;
    let Some(first) = candidates.next() else {
        return 0;
    };
    let Some(second) = candidates.next() else {
        return first as u32;
    };
    let mut best = (nearest.distance(row, first), first);
    for code in std::iter::once(second).chain(candidates) {
        if code < codes {
            let distance = nearest.distance(row, code);
            if distance < best.0 {
                best = (distance, code);
            }
        }
    }
    best.1 as u32
}
