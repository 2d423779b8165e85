//! gᵀ·x: the gradient of the weights of [`times`](super::times), summed over the rows.
//!
//! The sum runs over chunks of rows, whose number the sizes alone fix, side by side; the chunks are
//! added in order.

use rayon::prelude::*;

use super::matrix::multiply;
use super::{BLOCK, DEPTH, Matrix, Rows, ranges, with_buffer};
use crate::ops::blocks;

/// Tasks to spread over the threads: enough for an even load on a desktop's cores.
const TASKS: usize = 32;

/// Outputs a task: gathering the rows again for each such group costs a few percent of its
/// arithmetic.
const GROUP: usize = 128;

/// Rows a chunk at least.
const CHUNK: usize = 2 * BLOCK;

/// Elements of all partial sums together (16 MiB), unless one alone has more.
const PARTIALS: usize = 4 << 20;

/// `grad` [N,O] transposed times the rows [N,K]: [O,K]; and the sum of `grad` over the rows: [O].
pub(in crate::ops) fn outer(
    rows: &impl Rows,
    grad: &[f32],
    outputs: usize,
) -> (Vec<f32>, Vec<f32>) {
    let (count, depth) = (rows.count(), rows.depth());
    let chunks = TASKS
        .div_ceil(outputs.div_ceil(GROUP))
        .min(count.div_ceil(CHUNK))
        .min(PARTIALS / (outputs * depth))
        .max(1);
    let length = count.div_ceil(chunks).next_multiple_of(BLOCK);
    let chunks = count.div_ceil(length);

    let of_group = |buffer: &mut Vec<f32>, first: usize, from: usize, product: &mut [f32]| {
        let last = count.min(first + length);
        let mut sums = vec![0f32; product.len() / depth];
        for start in (first..last).step_by(BLOCK) {
            let block = start..last.min(start + BLOCK);
            let grad = &grad[block.start * outputs + from..];
            for row in grad.chunks(outputs).take(block.len()) {
                for (sum, &g) in sums.iter_mut().zip(row) {
                    *sum += g;
                }
            }
            let size = (sums.len(), block.len());
            let grad = Matrix::strided(grad, size, (1, outputs));
            for terms in ranges(depth, DEPTH) {
                let out = &mut product[terms.start..];
                let x = rows.block(block.clone(), terms, buffer);
                multiply(out, depth, grad, x, start > first);
            }
        }
        sums
    };
    let size = outputs * depth;
    let (products, sums) = blocks::images(chunks * size, size, &|chunk, products| {
        let groups = products.par_chunks_mut(GROUP * depth).enumerate();
        let sums: Vec<_> = groups
            .map(|(group, product)| {
                with_buffer(|buffer| of_group(buffer, chunk * length, group * GROUP, product))
            })
            .collect();
        sums.concat()
    });
    (
        sum_in_order(products, size),
        sum_in_order(sums.concat(), outputs),
    )
}

/// The sum of vectors of `length` that lie one after the other.
fn sum_in_order(mut vectors: Vec<f32>, length: usize) -> Vec<f32> {
    const PIECE: usize = 1 << 14;
    let (total, others) = vectors.split_at_mut(length);
    if !others.is_empty() {
        total
            .par_chunks_mut(PIECE)
            .enumerate()
            .for_each(|(i, total)| {
                for vector in others.chunks_exact(length) {
                    for (t, &v) in total.iter_mut().zip(&vector[i * PIECE..]) {
                        *t += v;
                    }
                }
            });
    }
    vectors.truncate(length);
    vectors.shrink_to_fit();
    vectors
}
