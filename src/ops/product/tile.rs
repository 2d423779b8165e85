//! Rows times panels: the one loop that multiplies.
//!
//! A tile is [`ROWS`] rows by as many columns as their sums fill the registers: an instruction set's lanes decide how
//! many, never an element's value, which is one chain of fused multiply-adds over the terms in order, from its bias or
//! from what stands there. On AVX2 a tile of 6×16 runs at the speed of the multiply-adds alone.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::matrix::Matrix;
use super::panels::{Line, Panels, WIDTH};

/// Rows of a tile.
pub(super) const ROWS: usize = 6;

/// What an element's chain begins with.
#[derive(Clone, Copy)]
pub(super) enum Start<'a> {
    Zero,
    /// A value a column.
    Bias(&'a [f32]),
    /// What stands in the result: the terms before.
    Present,
}

/// out = start + x·w over some panels and terms: x [N,terms] in rows that lie side by side; `out` holds N rows, `stride`
/// apart, of the panels' columns.
pub(super) struct Block<'a> {
    pub out: &'a mut [f32],
    pub stride: usize,
    pub x: Matrix<'a>,
    pub weights: &'a Panels,
    pub panels: Range<usize>,
    pub terms: Range<usize>,
    pub start: Start<'a>,
}

impl Block<'_> {
    pub fn run(self) {
        let columns =
            self.weights.size().1.min(self.panels.end * WIDTH) - self.panels.start * WIDTH;
        let (rows, terms) = self.x.size();
        assert!(self.x.has_dense_rows() && terms == self.terms.len());
        assert!(columns <= self.stride && self.out.len() >= (rows - 1) * self.stride + columns);
        Arch::new().dispatch(self);
    }
}

impl WithSimd for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, s: S) {
        let mut panel = self.panels.start;
        while panel < self.panels.end {
            let left = self.panels.end - panel;
            // Sums fill 24 of 32 registers (AVX-512, NEON) or 12 of 16 (AVX2).
            panel += match S::F32_LANES {
                16 if left >= 4 => self.panel::<S, 4, 4>(s, panel),
                16 if left >= 2 => self.panel::<S, 2, 2>(s, panel),
                16 => self.panel::<S, 1, 1>(s, panel),
                8 => self.panel::<S, 2, 1>(s, panel),
                4 => self.panel::<S, 4, 1>(s, panel),
                _ => self.panel::<S, 16, 1>(s, panel),
            };
        }
    }
}

/// sums += x·w of rows and panels of `$count` terms, `V` vectors in `P` panels. A macro: the sums of a function's argument
/// or result go through memory, a seventh of the speed.
macro_rules! accumulate {
    ($s:ident, $sums:ident, $x:ident, $lines:ident, $count:ident) => {
        for i in 0..$count {
            let weights: [S::f32s; V] = std::array::from_fn(|v| {
                let line = S::as_simd_f32s(&$lines[v * P / V][i].0).0;
                line[v % (V / P)]
            });
            for (sums, x) in $sums.iter_mut().zip(&$x) {
                let x = $s.splat_f32s(x[i]);
                for (sum, &weight) in sums.iter_mut().zip(&weights) {
                    *sum = $s.mul_add_f32s(x, weight, *sum);
                }
            }
        }
    };
}
pub(super) use accumulate;

impl Block<'_> {
    /// All rows by `P` panels, which are `V` vectors. Returns `P`.
    #[inline(always)]
    fn panel<S: Simd, const V: usize, const P: usize>(&mut self, s: S, panel: usize) -> usize {
        let rows = self.x.size().0;
        let whole = rows / ROWS * ROWS;
        for row in (0..whole).step_by(ROWS) {
            self.tile::<S, V, P, ROWS>(s, panel, row);
        }
        match rows - whole {
            1 => self.tile::<S, V, P, 1>(s, panel, whole),
            2 => self.tile::<S, V, P, 2>(s, panel, whole),
            3 => self.tile::<S, V, P, 3>(s, panel, whole),
            4 => self.tile::<S, V, P, 4>(s, panel, whole),
            5 => self.tile::<S, V, P, 5>(s, panel, whole),
            _ => {}
        }
        P
    }

    #[inline(always)]
    fn tile<S: Simd, const V: usize, const P: usize, const R: usize>(
        &mut self,
        s: S,
        panel: usize,
        row: usize,
    ) {
        let count = self.terms.len();
        let x: [&[f32]; R] = std::array::from_fn(|r| &self.x.row(row + r)[..count]);
        let lines: [&[Line]; P] =
            std::array::from_fn(|p| &self.weights.lines(panel + p, &self.terms)[..count]);
        let mut sums = self.started::<S, V, P, R>(s, panel, row);
        accumulate!(s, sums, x, lines, count);
        self.store::<S, V, P, R>(s, panel, row, &sums);
    }

    #[inline(always)]
    fn started<S: Simd, const V: usize, const P: usize, const R: usize>(
        &self,
        s: S,
        panel: usize,
        row: usize,
    ) -> [[S::f32s; V]; R] {
        let mut sums = [[s.splat_f32s(0.0); V]; R];
        let read = |sums: &mut [S::f32s; V], from: &[f32]| {
            if from.len() == P * WIDTH {
                sums.copy_from_slice(S::as_simd_f32s(from).0);
            } else {
                for (sum, from) in sums.iter_mut().zip(from.chunks(S::F32_LANES)) {
                    *sum = s.partial_load_f32s(from);
                }
            }
        };
        let columns = self.columns::<P>(panel);
        match self.start {
            Start::Zero => {}
            Start::Bias(bias) => {
                let first = self.panels.start * WIDTH;
                let mut of_row = [s.splat_f32s(0.0); V];
                read(
                    &mut of_row,
                    &bias[first + columns.start..first + columns.end],
                );
                sums = [of_row; R];
            }
            Start::Present => {
                for (r, sums) in sums.iter_mut().enumerate() {
                    let at = (row + r) * self.stride;
                    read(sums, &self.out[at + columns.start..at + columns.end]);
                }
            }
        }
        sums
    }

    #[inline(always)]
    fn store<S: Simd, const V: usize, const P: usize, const R: usize>(
        &mut self,
        s: S,
        panel: usize,
        row: usize,
        sums: &[[S::f32s; V]; R],
    ) {
        let columns = self.columns::<P>(panel);
        for (r, sums) in sums.iter().enumerate() {
            let at = (row + r) * self.stride;
            let out = &mut self.out[at + columns.start..at + columns.end];
            if out.len() == P * WIDTH {
                S::as_mut_simd_f32s(out).0.copy_from_slice(sums);
            } else {
                for (out, &sum) in out.chunks_mut(S::F32_LANES).zip(sums) {
                    s.partial_store_f32s(out, sum);
                }
            }
        }
    }

    /// The columns of `out` that `P` panels from `panel` on have.
    #[inline(always)]
    fn columns<const P: usize>(&self, panel: usize) -> Range<usize> {
        let end = self.weights.size().1.min((panel + P) * WIDTH);
        let first = self.panels.start * WIDTH;
        panel * WIDTH - first..end - first
    }
}
