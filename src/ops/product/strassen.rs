//! y = x·w + bias by Strassen's product in Winograd's form: seven products of half the size in each way instead of eight.
//!
//! Rows come in units (an image's tokens): the upper half of a unit's rows is paired with its lower half, so that a row's
//! bits depend on its unit alone. With x = [A11 A12; A21 A22] and w alike, S1 = A21 + A22, S2 = S1 − A11, S3 = A11 − A21,
//! S4 = A12 − S2; T1 = B12 − B11, T2 = B22 − T1, T3 = B22 − B12, T4 = T2 − B21 (kept beside the weight):
//!
//! P1 = A11·B11, U2 = P1 + S2·T2, U3 = U2 + S3·T3, P5 = S1·T1;
//! y11 = P1 + A12·B21, y12 = U2 + P5 + S4·B22, y21 = U3 − A22·T4, y22 = U3 + P5.
//!
//! A sum stays in the registers from one product to the next, so that the additions cost little: 1.08 times the speed of
//! the eight products of 128 rows, 128 terms and 384 columns, 1.07 at 704 columns, 1.03 at 352 terms and 128 columns (a
//! core of two with AVX2). A second level gains nothing there. The error is about twice that of the plain product.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::panels::{Line, Panels, WIDTH};
use super::tile::{ROWS, accumulate};
use super::{ranges, room, with_buffer};
use crate::ops::{blocks, simd};

/// Pairs of rows that are multiplied at a time: the factors of 48 pairs and 128 terms stay in a core's second cache.
const PAIRS: usize = 48;

/// Panels of the widest tile.
const MOST: usize = 4;

/// Pairs and terms below which the additions cost more than they save.
const FEWEST_PAIRS: usize = 16;
const FEWEST_TERMS: usize = 64;

/// The factors of the seven products on the weight's side, in the order in which they are taken: [I/2,O/2] each.
#[derive(Clone, Copy)]
pub(super) struct Sevenths<'a>(&'a [Panels]);

/// Whether the product of units of `rows` rows with a weight [O,I] is made this way.
pub(super) fn is_worth(rows: usize, outputs: usize, inputs: usize) -> bool {
    rows.is_multiple_of(2)
        && rows / 2 >= FEWEST_PAIRS
        && outputs.is_multiple_of(2 * WIDTH)
        && inputs.is_multiple_of(2)
        && inputs >= FEWEST_TERMS
}

/// Of `weight` [O,I], both even.
pub(super) fn factors(weight: &[f32], outputs: usize, inputs: usize) -> Vec<Panels> {
    let (o, i) = (outputs / 2, inputs / 2);
    // B is the weight transposed: B12 are the lower rows' left columns.
    let factor = |f: fn([f32; 4]) -> f32| {
        let mut values = Vec::with_capacity(o * i);
        for row in 0..o {
            let (upper, lower) = (&weight[row * inputs..], &weight[(row + o) * inputs..]);
            values.extend((0..i).map(|k| f([upper[k], lower[k], upper[k + i], lower[k + i]])));
        }
        Panels::of_outputs(&values, o, i, 1)
    };
    vec![
        factor(|[b11, ..]| b11),
        factor(|[_, _, b21, _]| b21),
        factor(|[b11, b12, _, b22]| b22 - (b12 - b11)), // T2
        factor(|[_, b12, _, b22]| b22 - b12),           // T3
        factor(|[b11, b12, b21, b22]| b21 - (b22 - (b12 - b11))), // −T4
        factor(|[b11, b12, ..]| b12 - b11),             // T1
        factor(|[.., b22]| b22),
    ]
}

impl<'a> Sevenths<'a> {
    pub fn new(factors: &'a [Panels]) -> Self {
        assert_eq!(factors.len(), 7);
        Self(factors)
    }

    /// I/2 and O/2.
    fn size(&self) -> (usize, usize) {
        self.0[0].size()
    }
}

/// x [units·rows, I] times the weight, plus `bias` [O]: [units·rows, O].
pub(super) fn times(x: &[f32], rows: usize, weights: Sevenths, bias: Option<&[f32]>) -> Vec<f32> {
    let (terms, columns) = weights.size();
    let (inputs, outputs) = (2 * terms, 2 * columns);
    let units = x.len() / inputs / rows;
    if !blocks::is_serial() && units < rayon::current_num_threads() {
        let mut y = spread(x, rows, weights);
        add_bias(&mut y, bias);
        return y;
    }
    let (y, _) = blocks::images(units * rows * outputs, rows * outputs, |unit, y| {
        let x = &x[unit * rows * inputs..][..rows * inputs];
        product(x, weights, 0..columns / WIDTH, y);
        add_bias(y, bias);
    });
    y
}

/// What `then` makes of the product of some units, rows of `width` of its rows, while these are in the cache.
pub(super) fn times_through(
    x: &[f32],
    rows: usize,
    weights: Sevenths,
    width: usize,
    then: impl Fn(&[f32], &mut [f32]) + Sync,
) -> Vec<f32> {
    let (terms, columns) = weights.size();
    let (inputs, outputs) = (2 * terms, 2 * columns);
    let units = x.len() / inputs / rows;
    if !blocks::is_serial() && units < rayon::current_num_threads() {
        let mut y = vec![0f32; units * rows * width];
        then(&spread(x, rows, weights), &mut y);
        return y;
    }
    let (y, _) = blocks::images(units * rows * width, rows * width, |unit, y| {
        let x = &x[unit * rows * inputs..][..rows * inputs];
        with_buffer(|buffer| {
            let of_unit = room(buffer, rows * outputs);
            product(x, weights, 0..columns / WIDTH, of_unit);
            then(of_unit, y);
        });
    });
    y
}

/// The product of few units on all threads: each takes some panels of a unit.
fn spread(x: &[f32], rows: usize, weights: Sevenths) -> Vec<f32> {
    let (terms, columns) = weights.size();
    let (inputs, outputs, panels) = (2 * terms, 2 * columns, columns / WIDTH);
    let mut y = vec![0f32; x.len() / inputs * outputs];
    let units = x.len() / inputs / rows;
    let a_unit = rayon::current_num_threads().div_ceil(units).min(panels);
    let tasks: Vec<_> = (0..units)
        .flat_map(|unit| ranges(panels, panels.div_ceil(a_unit)).map(move |panels| (unit, panels)))
        .collect();
    let parts: Vec<_> = tasks
        .into_par_iter()
        .map(|(unit, panels)| {
            let mut part = vec![0f32; rows * 2 * panels.len() * WIDTH];
            let x = &x[unit * rows * inputs..][..rows * inputs];
            product(x, weights, panels.clone(), &mut part);
            (unit, panels, part)
        })
        .collect();
    for (unit, panels, part) in parts {
        let (first, width) = (panels.start * WIDTH, panels.len() * WIDTH);
        let y = y[unit * rows * outputs..].chunks_exact_mut(outputs);
        for (y, part) in y.zip(part.chunks_exact(2 * width)) {
            let (left, right) = part.split_at(width);
            y[first..][..width].copy_from_slice(left);
            y[columns + first..][..width].copy_from_slice(right);
        }
    }
    y
}

fn add_bias(y: &mut [f32], bias: Option<&[f32]>) {
    let Some(bias) = bias else { return };
    simd::vectorized(
        #[inline(always)]
        || {
            for y in y.chunks_exact_mut(bias.len()) {
                for (y, b) in y.iter_mut().zip(bias) {
                    *y += b;
                }
            }
        },
    )
}

/// Of one unit x [rows,I], the columns of some panels of the left half, and beside them those of the right half.
fn product(x: &[f32], weights: Sevenths, panels: Range<usize>, out: &mut [f32]) {
    let terms = weights.size().0;
    let rows = x.len() / (2 * terms);
    with_buffer(|buffer| {
        for pairs in ranges(rows / 2, PAIRS) {
            let (factors, sums) = (7 * pairs.len() * terms, 3 * pairs.len() * MOST * WIDTH);
            let (factors, sums) = room(buffer, factors + sums).split_at_mut(factors);
            fill(factors, x, rows / 2, &pairs, terms);
            Arch::new().dispatch(Quarters {
                out: &mut *out,
                pairs,
                half: rows / 2,
                factors,
                sums,
                weights,
                panels: panels.clone(),
            });
        }
    });
}

/// The factors of the seven products on the side of x, of some pairs of rows: [7,pairs,terms].
fn fill(factors: &mut [f32], x: &[f32], half: usize, pairs: &Range<usize>, terms: usize) {
    let mut parts = factors.chunks_exact_mut(pairs.len() * terms);
    let mut parts: [&mut [f32]; 7] =
        std::array::from_fn(|_| parts.next().expect("seven parts of one length"));
    simd::vectorized(
        #[inline(always)]
        || {
            for (i, pair) in pairs.clone().enumerate() {
                let (a11, a12) = x[pair * 2 * terms..][..2 * terms].split_at(terms);
                let (a21, a22) = x[(half + pair) * 2 * terms..][..2 * terms].split_at(terms);
                let (a11, a12, a21) = (&a11[..terms], &a12[..terms], &a21[..terms]);
                let a22 = &a22[..terms];
                let [f0, f1, f2, f3, f4, f5, f6] =
                    parts.each_mut().map(|part| &mut part[i * terms..][..terms]);
                f0.copy_from_slice(a11);
                f1.copy_from_slice(a12);
                f4.copy_from_slice(a22);
                for k in 0..terms {
                    let s1 = a21[k] + a22[k];
                    let s2 = s1 - a11[k];
                    f2[k] = s2;
                    f3[k] = a11[k] - a21[k];
                    f5[k] = s1;
                    f6[k] = a12[k] - s2;
                }
            }
        },
    )
}

/// The four quarters of the result, of some pairs of rows and some panels.
struct Quarters<'a> {
    out: &'a mut [f32],
    pairs: Range<usize>,
    /// Rows of a half.
    half: usize,
    /// [7,pairs,terms]
    factors: &'a [f32],
    /// Room for P1, U2 and U3 of a panel or four.
    sums: &'a mut [f32],
    weights: Sevenths<'a>,
    panels: Range<usize>,
}

impl WithSimd for Quarters<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, s: S) {
        let mut panel = self.panels.start;
        while panel < self.panels.end {
            let left = self.panels.end - panel;
            // As in `tile`.
            panel += match S::F32_LANES {
                16 if left >= 4 => self.panels::<S, 4, 4>(s, panel),
                16 if left >= 2 => self.panels::<S, 2, 2>(s, panel),
                16 => self.panels::<S, 1, 1>(s, panel),
                8 => self.panels::<S, 2, 1>(s, panel),
                4 => self.panels::<S, 4, 1>(s, panel),
                _ => self.panels::<S, 16, 1>(s, panel),
            };
        }
    }
}

/// What is done to the tiles of a panel before the next stage: two or three products' weights stay in the first cache.
#[derive(Clone, Copy)]
enum Stage {
    /// P1 and y11.
    First,
    /// U2, U3 and y21.
    Second,
    /// y22 and y12.
    Third,
}

impl Quarters<'_> {
    /// All pairs by `P` panels, which are `V` vectors. Returns `P`.
    #[inline(always)]
    fn panels<S: Simd, const V: usize, const P: usize>(&mut self, s: S, panel: usize) -> usize {
        for stage in [Stage::First, Stage::Second, Stage::Third] {
            // Of one length or nearly: a tile of a row or two would wait for its own sums.
            for rows in ranges(self.pairs.len(), ROWS) {
                match rows.len() {
                    1 => self.tile::<S, V, P, 1>(s, panel, stage, rows.start),
                    2 => self.tile::<S, V, P, 2>(s, panel, stage, rows.start),
                    3 => self.tile::<S, V, P, 3>(s, panel, stage, rows.start),
                    4 => self.tile::<S, V, P, 4>(s, panel, stage, rows.start),
                    5 => self.tile::<S, V, P, 5>(s, panel, stage, rows.start),
                    _ => self.tile::<S, V, P, 6>(s, panel, stage, rows.start),
                }
            }
        }
        P
    }

    #[inline(always)]
    fn tile<S: Simd, const V: usize, const P: usize, const R: usize>(
        &mut self,
        s: S,
        panel: usize,
        stage: Stage,
        row: usize,
    ) {
        let count = self.weights.size().0;
        let mut sums = [[s.splat_f32s(0.0); V]; R];
        macro_rules! add_product {
            ($which:literal) => {
                let factor = &self.factors[($which * self.pairs.len() + row) * count..];
                let x: [&[f32]; R] = std::array::from_fn(|r| &factor[r * count..][..count]);
                let weights = &self.weights.0[$which];
                let lines: [&[Line]; P] =
                    std::array::from_fn(|p| &weights.lines(panel + p, &(0..count))[..count]);
                accumulate!(s, sums, x, lines, count);
            };
        }
        match stage {
            Stage::First => {
                add_product!(0);
                self.keep::<S, V, P, R>(0, row, &sums); // P1
                add_product!(1);
                self.store::<S, V, P, R>((0, 0), panel, row, &sums);
            }
            Stage::Second => {
                sums = self.kept::<S, V, P, R>(0, row);
                add_product!(2);
                self.keep::<S, V, P, R>(1, row, &sums); // U2
                add_product!(3);
                self.keep::<S, V, P, R>(2, row, &sums); // U3
                add_product!(4);
                self.store::<S, V, P, R>((1, 0), panel, row, &sums);
            }
            Stage::Third => {
                add_product!(5); // P5
                let mut y22 = self.kept::<S, V, P, R>(2, row);
                add(s, &mut y22, &sums);
                self.store::<S, V, P, R>((1, 1), panel, row, &y22);
                add(s, &mut sums, &self.kept::<S, V, P, R>(1, row));
                add_product!(6);
                self.store::<S, V, P, R>((0, 1), panel, row, &sums);
            }
        }
    }

    /// Where sums of `R` rows are kept.
    #[inline(always)]
    fn room<const P: usize>(&self, which: usize, row: usize) -> usize {
        (which * self.pairs.len() + row) * P * WIDTH
    }

    #[inline(always)]
    fn keep<S: Simd, const V: usize, const P: usize, const R: usize>(
        &mut self,
        which: usize,
        row: usize,
        sums: &[[S::f32s; V]; R],
    ) {
        let at = self.room::<P>(which, row);
        let rows = self.sums[at..][..R * P * WIDTH].chunks_exact_mut(P * WIDTH);
        for (to, sums) in rows.zip(sums) {
            S::as_mut_simd_f32s(to).0.copy_from_slice(sums);
        }
    }

    #[inline(always)]
    fn kept<S: Simd, const V: usize, const P: usize, const R: usize>(
        &self,
        which: usize,
        row: usize,
    ) -> [[S::f32s; V]; R] {
        let at = self.room::<P>(which, row);
        let from = &self.sums[at..][..R * P * WIDTH];
        std::array::from_fn(|r| {
            let row = S::as_simd_f32s(&from[r * P * WIDTH..][..P * WIDTH]).0;
            std::array::from_fn(|v| row[v])
        })
    }

    /// Writes rows of a quarter (down, across).
    #[inline(always)]
    fn store<S: Simd, const V: usize, const P: usize, const R: usize>(
        &mut self,
        quarter: (usize, usize),
        panel: usize,
        row: usize,
        sums: &[[S::f32s; V]; R],
    ) {
        let width = self.panels.len() * WIDTH;
        let column = quarter.1 * width + (panel - self.panels.start) * WIDTH;
        let first = quarter.0 * self.half + self.pairs.start + row;
        for (r, sums) in sums.iter().enumerate() {
            let to = &mut self.out[(first + r) * 2 * width + column..][..P * WIDTH];
            S::as_mut_simd_f32s(to).0.copy_from_slice(sums);
        }
    }
}

#[inline(always)]
fn add<S: Simd, const V: usize, const R: usize>(
    s: S,
    sums: &mut [[S::f32s; V]; R],
    others: &[[S::f32s; V]; R],
) {
    for (sums, others) in sums.iter_mut().zip(others) {
        for (sum, &other) in sums.iter_mut().zip(others) {
            *sum = s.add_f32s(*sum, other);
        }
    }
}
