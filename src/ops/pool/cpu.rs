//! The CPU version: one line of windows at a time forward, one map at a time backward (windows may
//! overlap).

use std::ops::Range;

use super::{Kind, Pool};
use crate::ops::window::Window;
use crate::ops::{blocks, simd};

/// B, H, W and C.
type Dims = (usize, usize, usize, usize);

impl Pool {
    /// The positions of the map in window (i, j).
    fn under(&self, i: usize, j: usize) -> (Range<usize>, Range<usize>) {
        let along = |i: usize, before: usize, kernel: usize, length: usize| {
            let start = i * self.window.stride;
            start.saturating_sub(before)..(start + kernel - before).min(length)
        };
        let Window {
            kernel,
            padding,
            input,
            ..
        } = self.window;
        (
            along(i, padding.top, kernel.0, input.0),
            along(j, padding.left, kernel.1, input.1),
        )
    }

    /// The offsets in a map of the positions in window (i, j), in row order; never empty.
    fn offsets(&self, i: usize, j: usize, channels: usize) -> impl Iterator<Item = usize> {
        let (rows, columns) = self.under(i, j);
        let width = self.window.input.1;
        rows.flat_map(move |y| columns.clone().map(move |x| (y * width + x) * channels))
    }

    /// The result of window (i, j) of a map.
    #[inline(always)]
    fn window_of(&self, map: &[f32], i: usize, j: usize, y: &mut [f32]) {
        let channels = y.len();
        let mut offsets = self.offsets(i, j, channels);
        if let Some(first) = offsets.next() {
            y.copy_from_slice(&map[first..first + channels]);
        }
        let mut count = 1f32;
        for offset in offsets {
            let x = &map[offset..offset + channels];
            match self.kind {
                Kind::Max => {
                    for (y, &x) in y.iter_mut().zip(x) {
                        // NaN stays NaN.
                        *y = if x > *y || x.is_nan() { x } else { *y };
                    }
                }
                Kind::Average => {
                    count += 1.0;
                    for (y, &x) in y.iter_mut().zip(x) {
                        *y += x;
                    }
                }
            }
        }
        if self.kind == Kind::Average {
            y.iter_mut().for_each(|y| *y /= count);
        }
    }

    /// The gradient for a whole map.
    #[inline(always)]
    fn map_grad(&self, map: &[f32], grad: &[f32], dx: &mut [f32], channels: usize) {
        let (lines, columns) = self.window.output;
        let windows = (0..lines).flat_map(|i| (0..columns).map(move |j| (i, j)));
        let mut best = vec![0f32; channels];
        let mut rest = vec![0f32; channels];
        for ((i, j), grad) in windows.zip(grad.chunks_exact(channels)) {
            match self.kind {
                Kind::Max => {
                    self.window_of(map, i, j, &mut best);
                    rest.copy_from_slice(grad);
                    for offset in self.offsets(i, j, channels) {
                        let x = &map[offset..offset + channels];
                        let dx = &mut dx[offset..offset + channels];
                        for (((dx, &x), &best), rest) in
                            dx.iter_mut().zip(x).zip(&best).zip(&mut rest)
                        {
                            // The first value that equals the maximum gets the whole gradient.
                            let taken = if x == best || x.is_nan() { *rest } else { 0.0 };
                            *dx += taken;
                            *rest -= taken;
                        }
                    }
                }
                Kind::Average => {
                    let count = self.offsets(i, j, channels).count() as f32;
                    for (rest, grad) in rest.iter_mut().zip(grad) {
                        *rest = grad / count;
                    }
                    for offset in self.offsets(i, j, channels) {
                        let dx = &mut dx[offset..offset + channels];
                        for (dx, rest) in dx.iter_mut().zip(&rest) {
                            *dx += rest;
                        }
                    }
                }
            }
        }
    }

    pub(super) fn forward(&self, x: &[f32], (b, h, w, c): Dims) -> Vec<f32> {
        let (lines, columns) = self.window.output;
        blocks::filled(b * lines * columns * c, columns * c, &|first, block| {
            simd::vectorized(
                #[inline(always)]
                || {
                    for (n, y) in block.chunks_exact_mut(columns * c).enumerate() {
                        let (map, i) = ((first + n) / lines, (first + n) % lines);
                        let map = &x[map * h * w * c..][..h * w * c];
                        for (j, y) in y.chunks_exact_mut(c).enumerate() {
                            self.window_of(map, i, j, y);
                        }
                    }
                },
            )
        })
    }

    /// dx
    pub(super) fn backward(&self, x: &[f32], dy: &[f32], (_, h, w, c): Dims) -> Vec<f32> {
        let (lines, columns) = self.window.output;
        let (map, pooled) = (h * w * c, lines * columns * c);
        let of_map = |b: usize, dx: &mut [f32]| {
            let (x, dy) = (&x[b * map..][..map], &dy[b * pooled..][..pooled]);
            simd::vectorized(
                #[inline(always)]
                || self.map_grad(x, dy, dx, c),
            )
        };
        blocks::images(x.len(), map, &of_map).0
    }
}
