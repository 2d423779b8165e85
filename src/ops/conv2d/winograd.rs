//! 3×3 convolutions of stride 1 by Winograd's F(4×4, 3×3) (Lavin and Gray 2016), for weights that
//! no longer change.
//!
//! With d the 6×6 inputs under a tile of 4×4 outputs, g a kernel, and A, B, G constant matrices,
//! the tile is Aᵀ[(G·g·Gᵀ) ⊙ (Bᵀ·d·B)]A. Over all channels that is 36 products of [tiles,I] with
//! [I,O] instead of 144: 9/4 multiply-adds per output and input channel instead of 9. An image's
//! bits depend on that image alone. The error is about ten times that of the direct convolution,
//! 1e-6 of the result.

use std::ops::Range;

use crate::ops::product::{Packed, Panels, room, times_into, with_buffer};
use crate::ops::window::Window;
use crate::ops::{Padding, blocks, flop, simd};

/// Outputs of a tile along one axis, and the inputs under them.
const OUT: usize = 4;
const IN: usize = 6;

/// Tiles that are multiplied at a time, and the fewest of a map: with fewer, the 36 weights would
/// be read for too few rows.
const TILES: usize = 16;

/// Channels that are transformed together.
const LANES: usize = 16;
type Lanes = [f32; LANES];

/// Maps [B,H,W,I] to [B,H,W,O].
pub(super) struct Winograd<'a> {
    size: (usize, usize),
    channels: (usize, usize),
    /// Those of the 36 products, each [I,O].
    weights: &'a [Panels],
}

impl<'a> Winograd<'a> {
    /// None if the convolution is computed directly.
    pub fn new(
        window: &Window,
        channels: (usize, usize),
        weight: &[f32],
        packed: &'a Packed,
    ) -> Option<Self> {
        let (h, w) = window.output;
        let (i, o) = channels;
        let is_worth = window.kernel == (3, 3)
            && window.stride == 1
            && window.padding == Padding::same(1)
            && [h, w].iter().all(|n| n.is_multiple_of(OUT))
            && [i, o].iter().all(|n| n.is_multiple_of(LANES))
            && h * w >= TILES * OUT * OUT;
        let make = || weights(weight, i, o);
        Some(Self {
            size: (h, w),
            channels,
            weights: is_worth.then(|| packed.winograd(make)).flatten()?,
        })
    }

    /// Counts the products of the forward pass over `maps` maps.
    pub fn count(&self, maps: usize) {
        let ((h, w), (i, o)) = (self.size, self.channels);
        flop::count(IN * IN * maps * (h / OUT) * (w / OUT), i, o);
    }

    /// The convolution plus `bias` [O].
    pub fn forward(&self, x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let ((h, w), (i, o)) = (self.size, self.channels);
        let (down, across) = (h / OUT, w / OUT);
        // Whole lines of tiles, as many as divide a map.
        let most = (TILES / across).clamp(1, down);
        let lines = (1..=most)
            .rev()
            .find(|n| down.is_multiple_of(*n))
            .unwrap_or(1);
        let (y, _) = blocks::images(x.len() / i * o, lines * OUT * w * o, &|block, y| {
            let first = block * lines;
            let map = &x[first / down * h * w * i..][..h * w * i];
            let first = first % down;
            self.lines(map, first..first + lines, bias, y);
        });
        y
    }

    /// Some lines of tiles of one map.
    fn lines(&self, map: &[f32], lines: Range<usize>, bias: Option<&[f32]>, y: &mut [f32]) {
        let ((h, w), (i, o)) = (self.size, self.channels);
        let tiles = lines.len() * (w / OUT);
        with_buffer(|buffer| {
            let (inputs, outputs) = (IN * IN * tiles * i, IN * IN * tiles * o);
            let (inputs, outputs) = room(buffer, inputs + outputs).split_at_mut(inputs);
            simd::vectorized(
                #[inline(always)]
                || {
                    for tile in 0..tiles {
                        let (line, column) = (lines.start + tile / (w / OUT), tile % (w / OUT));
                        for c in (0..i).step_by(LANES) {
                            let under = under(map, (h, w, i), (line * OUT, column * OUT), c);
                            let terms = twice(&under, input);
                            for (k, terms) in terms.iter().enumerate() {
                                inputs[(k * tiles + tile) * i + c..][..LANES]
                                    .copy_from_slice(terms);
                            }
                        }
                    }
                },
            );
            let all = inputs.chunks_exact(tiles * i).zip(self.weights);
            for (outputs, (inputs, weights)) in outputs.chunks_exact_mut(tiles * o).zip(all) {
                times_into(outputs, inputs, weights);
            }
            simd::vectorized(
                #[inline(always)]
                || {
                    for tile in 0..tiles {
                        let (line, column) = (tile / (w / OUT) * OUT, tile % (w / OUT) * OUT);
                        for c in (0..o).step_by(LANES) {
                            let mut terms = [[0f32; LANES]; IN * IN];
                            for (k, terms) in terms.iter_mut().enumerate() {
                                terms.copy_from_slice(
                                    &outputs[(k * tiles + tile) * o + c..][..LANES],
                                );
                            }
                            let mut results = twice(&terms, output);
                            if let Some(bias) = bias {
                                let bias = &bias[c..][..LANES];
                                for result in &mut results {
                                    for (r, b) in result.iter_mut().zip(bias) {
                                        *r += b;
                                    }
                                }
                            }
                            for (k, result) in results.iter().take(OUT * OUT).enumerate() {
                                let at = (line + k / OUT) * w + column + k % OUT;
                                y[at * o + c..][..LANES].copy_from_slice(result);
                            }
                        }
                    }
                },
            );
        });
    }
}

/// The 6×6 inputs under the tile whose first output is (i, j), for the channels from `c` on; zero
/// outside the map.
#[inline(always)]
fn under(
    map: &[f32],
    (h, w, channels): (usize, usize, usize),
    (i, j): (usize, usize),
    c: usize,
) -> [Lanes; IN * IN] {
    let mut found = [[0f32; LANES]; IN * IN];
    for (k, lanes) in found.iter_mut().enumerate() {
        // One less than the input's line and column is the output's.
        let (row, column) = (i + k / IN, j + k % IN);
        if (1..=h).contains(&row) && (1..=w).contains(&column) {
            let at = ((row - 1) * w + column - 1) * channels + c;
            lanes.copy_from_slice(&map[at..][..LANES]);
        }
    }
    found
}

/// `f` of every column of 6×6 values, then of every row of the results: the first `N`·`N` values.
#[inline(always)]
fn twice<const N: usize>(
    values: &[Lanes; IN * IN],
    f: impl Fn([f32; IN]) -> [f32; N] + Copy,
) -> [Lanes; IN * IN] {
    let mut columns = [[0f32; LANES]; IN * IN];
    for c in 0..IN {
        for l in 0..LANES {
            let results = f(std::array::from_fn(|r| values[r * IN + c][l]));
            for (r, result) in results.into_iter().enumerate() {
                columns[r * IN + c][l] = result;
            }
        }
    }
    let mut all = [[0f32; LANES]; IN * IN];
    for r in 0..N {
        for l in 0..LANES {
            let results = f(std::array::from_fn(|c| columns[r * IN + c][l]));
            for (c, result) in results.into_iter().enumerate() {
                all[r * N + c][l] = result;
            }
        }
    }
    all
}

/// Bᵀ of a column.
#[inline(always)]
fn input([d0, d1, d2, d3, d4, d5]: [f32; IN]) -> [f32; IN] {
    let (even, odd) = (d2.mul_add(-4.0, d4), d1.mul_add(-4.0, d3));
    let (even2, odd2) = (d4 - d2, d3 - d1);
    [
        d0.mul_add(4.0, d2.mul_add(-5.0, d4)),
        even + odd,
        even - odd,
        odd2.mul_add(2.0, even2),
        odd2.mul_add(-2.0, even2),
        d1.mul_add(4.0, d3.mul_add(-5.0, d5)),
    ]
}

/// Aᵀ of a column.
#[inline(always)]
fn output([m0, m1, m2, m3, m4, m5]: [f32; IN]) -> [f32; OUT] {
    let (sum, difference) = (m1 + m2, m1 - m2);
    let (sum2, difference2) = (m3 + m4, m3 - m4);
    [
        m0 + sum + sum2,
        difference2.mul_add(2.0, difference),
        sum2.mul_add(4.0, sum),
        difference2.mul_add(8.0, difference) + m5,
    ]
}

/// G of a column of the kernel.
fn kernel([g0, g1, g2]: [f64; 3]) -> [f64; IN] {
    let (ends, ends4) = (g0 + g2, g0 + 4.0 * g2);
    [
        g0 / 4.0,
        -(ends + g1) / 6.0,
        (g1 - ends) / 6.0,
        (ends4 + 2.0 * g1) / 24.0,
        (ends4 - 2.0 * g1) / 24.0,
        g2,
    ]
}

/// G·g·Gᵀ of `weight` [O,I,3,3]: 36 of [I,O], rounded once.
fn weights(weight: &[f32], inputs: usize, outputs: usize) -> Vec<Panels> {
    let mut all = vec![vec![0f32; inputs * outputs]; IN * IN];
    for (at, g) in weight.chunks_exact(9).enumerate() {
        let (o, i) = (at / inputs, at % inputs);
        let columns: [[f64; IN]; 3] =
            std::array::from_fn(|c| kernel([0, 1, 2].map(|r| f64::from(g[r * 3 + c]))));
        for r in 0..IN {
            let row = kernel([0, 1, 2].map(|c| columns[c][r]));
            for (c, value) in row.into_iter().enumerate() {
                all[r * IN + c][i * outputs + o] = value as f32;
            }
        }
    }
    all.iter()
        .map(|values| Panels::of_rows(values, outputs))
        .collect()
}
