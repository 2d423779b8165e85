//! y = x·w + bias: rows [N,K] times w [K,O].

use std::ops::Range;

use rayon::prelude::*;

use super::matrix::multiply;
use super::{BLOCK, DEPTH, Matrix, Rows, ranges, with_buffer};
use crate::ops::blocks;

/// Outputs a task at least, where few rows are spread over the threads by their outputs.
const GROUP: usize = 64;

/// Multiplications a task at least (about 20 µs) where few rows are spread.
const TASK: usize = 1 << 19;

/// The rows times `weights` [K,O], plus `bias` [O] if there is one: [N,O].
pub(in crate::ops) fn times(rows: &impl Rows, weights: Matrix, bias: Option<&[f32]>) -> Vec<f32> {
    times_then(rows, weights, bias, |_| {})
}

/// [`times`], then `then` of every block of whole rows while it is in the cache.
pub(in crate::ops) fn times_then(
    rows: &impl Rows,
    weights: Matrix,
    bias: Option<&[f32]>,
    then: impl Fn(&mut [f32]) + Sync,
) -> Vec<f32> {
    let (depth, outputs) = weights.size();
    if outputs == 1 {
        // One output would go another way in `gemm`: a second one is computed and dropped.
        let pairs: Vec<f32> = weights.elements().flat_map(|w| [w, 0.0]).collect();
        let bias = bias.map(|b| [b[0], 0.0]);
        let bias = bias.as_ref().map(|b| b.as_slice());
        let y = times(rows, Matrix::dense(&pairs, (depth, 2)), bias);
        let mut y: Vec<f32> = y.into_iter().step_by(2).collect();
        then(&mut y);
        return y;
    }
    let product = Product {
        rows,
        weights,
        bias,
    };
    if rows.count() <= BLOCK {
        let mut y = product.few();
        then(&mut y);
        return y;
    }
    let (y, _) = blocks::images(rows.count() * outputs, BLOCK * outputs, |i, y| {
        with_buffer(|buffer| product.block(buffer, i * BLOCK, y));
        then(y);
    });
    y
}

struct Product<'a, R> {
    rows: &'a R,
    weights: Matrix<'a>,
    bias: Option<&'a [f32]>,
}

impl<R: Rows> Product<'_, R> {
    /// The product of a single block of rows, in groups of outputs.
    fn few(&self) -> Vec<f32> {
        let (depth, outputs) = self.weights.size();
        let count = self.rows.count();
        let tasks = (count * depth * outputs / TASK).clamp(1, outputs.div_ceil(GROUP));
        let mut y = vec![0f32; count * outputs];
        if tasks == 1 {
            self.block(&mut Vec::new(), 0, &mut y);
            return y;
        }
        let groups: Vec<_> = ranges(outputs, outputs.div_ceil(tasks)).collect();
        let parts: Vec<_> = groups
            .into_par_iter()
            .map(|group| {
                let mut y = vec![0f32; count * group.len()];
                let part = Product {
                    rows: self.rows,
                    weights: self.weights.columns(group.clone()),
                    bias: self.bias.map(|bias| &bias[group.clone()]),
                };
                part.block(&mut Vec::new(), 0, &mut y);
                (group, y)
            })
            .collect();
        for (group, part) in parts {
            let rows = y.chunks_exact_mut(outputs);
            for (y, part) in rows.zip(part.chunks_exact(group.len())) {
                y[group.clone()].copy_from_slice(part);
            }
        }
        y
    }

    /// Fills `y` with the results of the rows from `first` on.
    fn block(&self, buffer: &mut Vec<f32>, first: usize, y: &mut [f32]) {
        let outputs = self.weights.size().1;
        let count = y.len() / outputs;
        if count > 1 {
            return self.fill(buffer, first..first + count, y);
        }
        // A single row would go another way in `gemm`: it is taken twice.
        let mut twice = vec![0f32; 2 * outputs];
        self.fill(buffer, first..first + 1, &mut twice);
        y.copy_from_slice(&twice[..outputs]);
    }

    fn fill(&self, buffer: &mut Vec<f32>, rows: Range<usize>, y: &mut [f32]) {
        let outputs = self.weights.size().1;
        if let Some(bias) = self.bias {
            y.chunks_exact_mut(outputs)
                .for_each(|row| row.copy_from_slice(bias));
        }
        for terms in ranges(self.rows.depth(), DEPTH) {
            let weights = self.weights.rows(terms.clone());
            let add = self.bias.is_some() || terms.start > 0;
            let mut x = self.rows.block(rows.clone(), terms, buffer);
            if rows.len() == 1 {
                x = x.repeated(2);
            }
            multiply(y, outputs, x, weights, add);
        }
    }
}
