//! Rows times panels: the one loop that multiplies.
//!
//! A tile is [`ROWS`] rows by as many columns as their sums fill the registers: an instruction
//! set's lanes decide how many, never an element's value, which is one chain of fused multiply-adds
//! over the terms in order, from its bias or from what stands there. On AVX2 a tile of 6×16 runs at
//! the speed of the multiply-adds alone.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::matrix::Matrix;
use super::panels::{Line, Panels, WIDTH};

/// Rows of a tile.
const ROWS: usize = 6;

/// What an element's chain begins with.
#[derive(Clone, Copy)]
pub(super) enum Start<'a> {
    Zero,
    /// A value a column.
    Bias(&'a [f32]),
    /// What stands in the result: the terms before.
    Present,
}

/// out = start + x·w over some panels and terms: x [N,terms] in rows that lie side by side; `out`
/// holds N rows, `stride` apart, of the panels' columns.
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
        self.ask_for_next::<P, R>(panel + P, row);
        let mut sums = self.started::<S, V, P, R>(s, panel, row);
        for i in 0..count {
            let weights: [S::f32s; V] = std::array::from_fn(|v| {
                let line = S::as_simd_f32s(&lines[v * P / V][i].0).0;
                line[v % (V / P)]
            });
            for (sums, x) in sums.iter_mut().zip(&x) {
                let x = s.splat_f32s(x[i]);
                for (sum, &weight) in sums.iter_mut().zip(&weights) {
                    *sum = s.mul_add_f32s(x, weight, *sum);
                }
            }
        }
        self.store::<S, V, P, R>(panel, row, &sums);
    }

    /// Asks for a tile's share of the `P` panels from `next` on, which come from main memory while
    /// this panel's tiles are multiplied: 3 to 5 % of a product with weights larger than the cache.
    #[inline(always)]
    fn ask_for_next<const P: usize, const R: usize>(&self, next: usize, row: usize) {
        if next + P > self.weights.count() {
            return;
        }
        let (rows, count) = (self.x.size().0, self.terms.len());
        let share = row * count / rows..(row + R) * count / rows;
        for panel in next..next + P {
            self.weights.lines(panel, &self.terms)[share.clone()]
                .iter()
                .for_each(prefetch);
        }
    }

    #[inline(always)]
    fn started<S: Simd, const V: usize, const P: usize, const R: usize>(
        &self,
        s: S,
        panel: usize,
        row: usize,
    ) -> [[S::f32s; V]; R] {
        let columns = self.columns::<P>(panel);
        match self.start {
            Start::Zero => [[s.splat_f32s(0.0); V]; R],
            Start::Bias(bias) => {
                let first = self.panels.start * WIDTH;
                [read::<S, V, P>(&bias[first + columns.start..first + columns.end]); R]
            }
            Start::Present => std::array::from_fn(|r| {
                let at = (row + r) * self.stride;
                read::<S, V, P>(&self.out[at + columns.start..at + columns.end])
            }),
        }
    }

    #[inline(always)]
    fn store<S: Simd, const V: usize, const P: usize, const R: usize>(
        &mut self,
        panel: usize,
        row: usize,
        sums: &[[S::f32s; V]; R],
    ) {
        let columns = self.columns::<P>(panel);
        for (r, sums) in sums.iter().enumerate() {
            let at = (row + r) * self.stride;
            write::<S, V, P>(&mut self.out[at + columns.start..at + columns.end], sums);
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

/// Brings a line into the second cache.
#[inline(always)]
fn prefetch(line: &Line) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint about an address, which is not accessed; every x86-64 has it.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(line).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

// Sums stay in registers only if every index into them is a constant. Rows of fewer columns take a
// detour through a whole one.

/// A row of `P` panels; zeros are appended to fewer columns.
#[inline(always)]
fn read<S: Simd, const V: usize, const P: usize>(from: &[f32]) -> [S::f32s; V] {
    if from.len() == P * WIDTH {
        return *S::as_simd_f32s(from).0.first_chunk().expect(WHOLE);
    }
    let mut row = [[0f32; WIDTH]; P];
    row.as_flattened_mut()[..from.len()].copy_from_slice(from);
    *S::as_simd_f32s(row.as_flattened())
        .0
        .first_chunk()
        .expect(WHOLE)
}

/// As many columns of a row as `out` has.
#[inline(always)]
fn write<S: Simd, const V: usize, const P: usize>(out: &mut [f32], sums: &[S::f32s; V]) {
    if out.len() == P * WIDTH {
        let row = S::as_mut_simd_f32s(out).0;
        *row.first_chunk_mut().expect(WHOLE) = *sums;
        return;
    }
    let mut row = [[0f32; WIDTH]; P];
    let vectors = S::as_mut_simd_f32s(row.as_flattened_mut()).0;
    *vectors.first_chunk_mut().expect(WHOLE) = *sums;
    out.copy_from_slice(&row.as_flattened()[..out.len()]);
}

const WHOLE: &str = "P panels are V vectors";
