//! A convolution's weights [O,I,kh,kw] in the order that a product reads them, and back.

use rayon::prelude::*;

/// The side of the squares that are transposed at once: a cache line.
const SIDE: usize = 16;

/// [O,I,kh,kw] → [kh·kw·I,O]: rows in the order of a gathered window. `taps` = kh·kw.
pub(in crate::ops) fn by_output(
    weight: &[f32],
    outputs: usize,
    inputs: usize,
    taps: usize,
) -> Vec<f32> {
    let depth = inputs * taps;
    let mut packed = vec![0f32; weight.len()];
    packed
        .par_chunks_mut(SIDE * outputs)
        .with_min_len(8)
        .enumerate()
        .for_each(|(task, rows)| {
            let offsets: [usize; SIDE] = std::array::from_fn(|r| {
                let (tap, channel) = ((task * SIDE + r) / inputs, (task * SIDE + r) % inputs);
                (channel * taps + tap).min(depth - 1)
            });
            // Through a square on the stack: rows that lie a power of two apart share their place in the cache.
            let mut square = [[0f32; SIDE]; SIDE];
            for (block, sources) in weight.chunks(SIDE * depth).enumerate() {
                for (o, source) in sources.chunks_exact(depth).enumerate() {
                    for (line, &offset) in square.iter_mut().zip(&offsets) {
                        line[o] = source[offset];
                    }
                }
                let columns = block * SIDE..outputs.min((block + 1) * SIDE);
                for (row, line) in rows.chunks_exact_mut(outputs).zip(&square) {
                    row[columns.clone()].copy_from_slice(&line[..columns.len()]);
                }
            }
        });
    packed
}

/// [O,I,kh,kw] → [taps·O,I], only the taps given (numbers ky·kw + kx), in their order.
pub(super) fn by_input(
    weight: &[f32],
    outputs: usize,
    inputs: usize,
    taps: usize,
    chosen: &[usize],
) -> Vec<f32> {
    let mut packed = vec![0f32; chosen.len() * outputs * inputs];
    packed
        .par_chunks_mut(outputs * inputs)
        .zip(chosen)
        .for_each(|(packed, &tap)| {
            let sources = weight.chunks_exact(inputs * taps);
            for (row, source) in packed.chunks_exact_mut(inputs).zip(sources) {
                for (value, &w) in row.iter_mut().zip(source[tap..].iter().step_by(taps)) {
                    *value = w;
                }
            }
        });
    packed
}

/// [O,kh·kw·I] → [O,I,kh,kw]: a gradient in the order of gathered windows as one of the weights.
pub(super) fn from_windows(gradient: Vec<f32>, inputs: usize, taps: usize) -> Vec<f32> {
    if taps == 1 {
        return gradient;
    }
    let mut weights = vec![0f32; gradient.len()];
    weights
        .par_chunks_mut(inputs * taps)
        .zip(gradient.par_chunks(inputs * taps))
        .for_each(|(weights, gradient)| {
            for (tap, gradient) in gradient.chunks_exact(inputs).enumerate() {
                for (w, &g) in weights[tap..].iter_mut().step_by(taps).zip(gradient) {
                    *w = g;
                }
            }
        });
    weights
}
