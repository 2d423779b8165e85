//! y = x·w + bias: rows [N,K] times w [K,O].

use rayon::prelude::*;
use std::ops::Range;

use super::matrix::multiply;
use super::{BLOCK, DEPTH, Matrix, Rows, ranges};

/// The rows times `weights` [K,O], plus `bias` [O] if there is one: [N,O].
pub(in crate::ops) fn times(
    rows: &impl Rows,
    weights: &[f32],
    outputs: usize,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    if outputs == 1 {
        // One output would go another way in `gemm`: a second one is computed and dropped.
        let weights: Vec<f32> = weights.iter().flat_map(|&w| [w, 0.0]).collect();
        let bias = bias.map(|b| [b[0], 0.0]);
        let y = times(rows, &weights, 2, bias.as_ref().map(|b| b.as_slice()));
        return y.into_iter().step_by(2).collect();
    }
    let product = Product {
        rows,
        weights,
        outputs,
        bias,
    };
    let mut y = vec![0f32; rows.count() * outputs];
    if rows.count() <= BLOCK {
        product.block(&mut Vec::new(), 0, &mut y);
    } else {
        y.par_chunks_mut(BLOCK * outputs)
            .enumerate()
            .for_each_init(Vec::new, |buffer, (i, y)| {
                product.block(buffer, i * BLOCK, y)
            });
    }
    y
}

struct Product<'a, R> {
    rows: &'a R,
    weights: &'a [f32],
    outputs: usize,
    bias: Option<&'a [f32]>,
}

impl<R: Rows> Product<'_, R> {
    /// Fills `y` with the results of the rows from `first` on.
    fn block(&self, buffer: &mut Vec<f32>, first: usize, y: &mut [f32]) {
        let count = y.len() / self.outputs;
        if count > 1 {
            return self.fill(buffer, first..first + count, y);
        }
        // A single row would go another way in `gemm`: it is taken twice.
        let mut twice = vec![0f32; 2 * self.outputs];
        self.fill(buffer, first..first + 1, &mut twice);
        y.copy_from_slice(&twice[..self.outputs]);
    }

    fn fill(&self, buffer: &mut Vec<f32>, rows: Range<usize>, y: &mut [f32]) {
        let outputs = self.outputs;
        if let Some(bias) = self.bias {
            y.chunks_exact_mut(outputs)
                .for_each(|row| row.copy_from_slice(bias));
        }
        for terms in ranges(self.rows.depth(), DEPTH) {
            let weights = &self.weights[terms.start * outputs..terms.end * outputs];
            let weights = Matrix::dense(weights, (terms.len(), outputs));
            let add = self.bias.is_some() || terms.start > 0;
            let mut x = self.rows.block(rows.clone(), terms, buffer);
            if rows.len() == 1 {
                x = x.repeated(2);
            }
            multiply(y, outputs, x, weights, add);
        }
    }
}
