//! y = x·w + bias: rows [N,K] times w [K,O].

use std::ops::Range;

use rayon::prelude::*;

use super::panels::{Panels, WIDTH};
use super::tile::{Block, Start};
use super::{BLOCK, DEPTH, Plain, Rows, ranges, room, with_buffer};
use crate::ops::blocks;

/// Multiplications a task at least (about 20 µs) where few rows are spread over the threads by their outputs.
const TASK: usize = 1 << 19;

/// The rows times `weights` [K,O], plus `bias` [O] if there is one: [N,O].
pub(in crate::ops) fn times(rows: &impl Rows, weights: &Panels, bias: Option<&[f32]>) -> Vec<f32> {
    times_then(rows, weights, bias, |_| {})
}

/// [`times`], then `then` of every block of whole rows while it is in the cache.
pub(in crate::ops) fn times_then(
    rows: &impl Rows,
    weights: &Panels,
    bias: Option<&[f32]>,
    then: impl Fn(&mut [f32]) + Sync,
) -> Vec<f32> {
    let product = Product {
        rows,
        weights,
        bias,
    };
    let outputs = weights.size().1;
    if rows.count() <= BLOCK && !blocks::is_serial() {
        let mut y = product.few();
        then(&mut y);
        return y;
    }
    let (y, _) = blocks::images(rows.count() * outputs, BLOCK * outputs, |i, y| {
        product.block(i * BLOCK, y);
        then(y);
    });
    y
}

/// Rows of a product that only lives in the cache.
const THROUGH: usize = 48;

/// What `then` makes of the product, rows of `width` of some whole rows of it, while these are in the cache.
pub(in crate::ops) fn times_through(
    rows: &impl Rows,
    weights: &Panels,
    width: usize,
    then: impl Fn(&[f32], &mut [f32]) + Sync,
) -> Vec<f32> {
    let product = Product {
        rows,
        weights,
        bias: None,
    };
    let outputs = weights.size().1;
    if rows.count() <= BLOCK && !blocks::is_serial() {
        let mut y = vec![0f32; rows.count() * width];
        then(&product.few(), &mut y);
        return y;
    }
    let (y, _) = blocks::images(rows.count() * width, THROUGH * width, |i, y| {
        with_buffer(|buffer| {
            let x = room(buffer, y.len() / width * outputs);
            product.block(i * THROUGH, x);
            then(x, y);
        });
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
        self.panels(first, 0..self.weights.count(), self.weights.size().1, y);
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
