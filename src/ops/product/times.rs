//! y = x·w + bias: rows [N,K] times w [K,O].

use std::ops::Range;

use rayon::prelude::*;

use super::panels::{Panels, WIDTH};
use super::tile::{Block, Start};
use super::{BLOCK, DEPTH, Matrix, Plain, Rows, ranges, room, with_buffer};
use crate::ops::blocks;

/// Multiplications a task at least (about 20 µs) where few rows are spread over the threads by
/// their outputs.
const TASK: usize = 1 << 19;

/// The rows times `weights` [K,O], plus `bias` [O] if there is one: [N,O].
pub(in crate::ops) fn times(rows: &impl Rows, weights: &Panels, bias: Option<&[f32]>) -> Vec<f32> {
    times_then(rows, weights, bias, |_, _| {})
}

/// [`times`], then `then` of the first row and the results of every block of whole rows while it is
/// in the cache.
pub(in crate::ops) fn times_then(
    rows: &impl Rows,
    weights: &Panels,
    bias: Option<&[f32]>,
    then: impl Fn(usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    let product = Product {
        rows,
        weights,
        bias,
    };
    let outputs = weights.size().1;
    if rows.count() <= BLOCK && !blocks::is_serial() {
        let mut y = product.few();
        then(0, &mut y);
        return y;
    }
    let (y, _) = blocks::images(rows.count() * outputs, BLOCK * outputs, &|i, y| {
        product.block(i * BLOCK, y);
        then(i * BLOCK, y);
    });
    y
}

/// Values of a page. Results whose rows are whole pages apart would compete for a few places of the
/// first cache, 128 rows of them for 8: a tenth of the time. They are written a few panels at a
/// time, side by side first.
const PAGE: usize = 1024;
/// Those panels.
const APART: usize = 8;

/// Panels of either half of a product that only lives in the cache.
const THROUGH: usize = 4;

/// What `then` makes of the two halves of the product's columns, [N,O/2]: a few columns of both at
/// a time, so that the weights are read once for a block of rows and the product never leaves the
/// cache.
///
/// `then` gets equally many columns of the first and of the second half, row after row, and rows of
/// O/2 results, of which it fills `columns`.
pub(in crate::ops) fn times_through(
    rows: &impl Rows,
    weights: &Panels,
    then: impl Fn([&[f32]; 2], &mut [f32], Range<usize>) + Sync,
) -> Vec<f32> {
    let half = weights.size().1 / 2;
    let of_block = |first: usize, y: &mut [f32]| {
        let (count, widest) = (y.len() / half, THROUGH * WIDTH);
        with_buffer(|made| {
            // Rows are made once, not for every group of columns.
            let x = rows.block(first..first + count, 0..rows.depth(), made);
            let product = Product {
                rows: &Made(x),
                weights,
                bias: None,
            };
            with_buffer(|buffer| {
                let (left, right) = room(buffer, 2 * count * widest).split_at_mut(count * widest);
                for panels in ranges(half / WIDTH, THROUGH) {
                    let columns = panels.start * WIDTH..panels.end * WIDTH;
                    let others = panels.start + half / WIDTH..panels.end + half / WIDTH;
                    let size = count * columns.len();
                    let (left, right) = (&mut left[..size], &mut right[..size]);
                    product.panels(0, panels, columns.len(), left);
                    product.panels(0, others, columns.len(), right);
                    then([left, right], y, columns);
                }
            });
        });
    };
    if !half.is_multiple_of(WIDTH) || (rows.count() <= BLOCK && !blocks::is_serial()) {
        let product = times(rows, weights, None);
        return blocks::filled(product.len() / 2, half, &|first, y| {
            with_buffer(|buffer| {
                let (left, right) = room(buffer, 2 * y.len()).split_at_mut(y.len());
                let parts = left
                    .chunks_exact_mut(half)
                    .zip(right.chunks_exact_mut(half));
                let rows = product[first * 2 * half..].chunks_exact(2 * half);
                for ((left, right), row) in parts.zip(rows) {
                    left.copy_from_slice(&row[..half]);
                    right.copy_from_slice(&row[half..]);
                }
                then([left, right], y, 0..half);
            });
        });
    }
    let (y, _) = blocks::images(rows.count() * half, BLOCK * half, &|i, y| {
        of_block(i * BLOCK, y);
    });
    y
}

/// `y` = x·w on this thread, x [N,K] row after row.
pub(in crate::ops) fn times_into(y: &mut [f32], x: &[f32], weights: &Panels) {
    let product = Product {
        rows: &Plain::new(x, weights.size().0),
        weights,
        bias: None,
    };
    product.block(0, y);
}

/// Rows that are there already.
struct Made<'a>(Matrix<'a>);

impl Rows for Made<'_> {
    fn count(&self) -> usize {
        self.0.size().0
    }

    fn depth(&self) -> usize {
        self.0.size().1
    }

    fn block<'a>(
        &'a self,
        rows: Range<usize>,
        terms: Range<usize>,
        _: &'a mut Vec<f32>,
    ) -> Matrix<'a> {
        self.0.part(rows, terms)
    }
}

struct Product<'a, R> {
    rows: &'a R,
    weights: &'a Panels,
    bias: Option<&'a [f32]>,
}

impl<R: Rows> Product<'_, R> {
    /// The product of a single block of rows, in groups of panels.
    fn few(&self) -> Vec<f32> {
        let (depth, outputs) = self.weights.size();
        let (count, panels) = (self.rows.count(), self.weights.count());
        let tasks = (count * depth * outputs / TASK).clamp(1, panels);
        let mut y = vec![0f32; count * outputs];
        if tasks == 1 {
            self.block(0, &mut y);
            return y;
        }
        let groups: Vec<_> = ranges(panels, panels.div_ceil(tasks)).collect();
        let parts: Vec<_> = groups
            .into_par_iter()
            .map(|panels| {
                let columns = panels.start * WIDTH..outputs.min(panels.end * WIDTH);
                let mut y = vec![0f32; count * columns.len()];
                self.panels(0, panels, columns.len(), &mut y);
                (columns, y)
            })
            .collect();
        for (columns, part) in parts {
            let rows = y.chunks_exact_mut(outputs);
            for (y, part) in rows.zip(part.chunks_exact(columns.len())) {
                y[columns.clone()].copy_from_slice(part);
            }
        }
        y
    }

    /// Fills `y` with the results of the rows from `first` on.
    fn block(&self, first: usize, y: &mut [f32]) {
        let outputs = self.weights.size().1;
        let all = 0..self.weights.count();
        if !outputs.is_multiple_of(PAGE) {
            return self.panels(first, all, outputs, y);
        }
        let count = y.len() / outputs;
        with_buffer(|made| {
            let depth = self.rows.depth();
            let made = Product {
                rows: &Made(self.rows.block(first..first + count, 0..depth, made)),
                weights: self.weights,
                bias: self.bias,
            };
            with_buffer(|buffer| {
                for panels in ranges(all.end, APART) {
                    let columns = panels.start * WIDTH..panels.end * WIDTH;
                    let part = room(buffer, count * columns.len());
                    made.panels(0, panels, columns.len(), part);
                    let rows = y.chunks_exact_mut(outputs);
                    for (y, part) in rows.zip(part.chunks_exact(columns.len())) {
                        y[columns.clone()].copy_from_slice(part);
                    }
                }
            });
        });
    }

    /// [`Product::block`] of some panels, which are `columns` wide.
    fn panels(&self, first: usize, panels: Range<usize>, columns: usize, y: &mut [f32]) {
        let rows = first..first + y.len() / columns;
        for terms in ranges(self.rows.depth(), DEPTH) {
            let start = match (terms.start, self.bias) {
                (0, None) => Start::Zero,
                (0, Some(bias)) => Start::Bias(bias),
                _ => Start::Present,
            };
            with_buffer(|buffer| {
                Block {
                    out: &mut *y,
                    stride: columns,
                    x: self.rows.block(rows.clone(), terms.clone(), buffer),
                    weights: self.weights,
                    panels: panels.clone(),
                    terms,
                    start,
                }
                .run();
            });
        }
    }
}
