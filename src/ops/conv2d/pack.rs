//! A convolution's weights [O,I,kh,kw] in the order in which a matmul reads them, and back.

use rayon::prelude::*;

/// [O,I,kh,kw] → [offsets·O,I], for the given kernel offsets only (indices ky·kw + kx), in order.
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

/// [O,kh·kw·I] → [O,I,kh,kw]: converts a gradient in the order of gathered windows to the weight's
/// layout.
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
