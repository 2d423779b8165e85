//! The rows of a convolution: the input values of each window, in the order (row, column, channel).

use std::ops::Range;

use crate::ops::product::{Matrix, Rows};

/// Windows over maps [B,H,W,C] in memory, moved by `stride` from `origin`, which may be outside the
/// map.
pub(super) struct Gather<'a> {
    pub maps: &'a [f32],
    pub size: (usize, usize),
    pub channels: usize,
    pub kernel: (usize, usize),
    pub stride: usize,
    pub origin: (isize, isize),
    pub output: (usize, usize),
}

impl Rows for Gather<'_> {
    fn count(&self) -> usize {
        let maps = self.maps.len() / (self.size.0 * self.size.1 * self.channels);
        maps * self.output.0 * self.output.1
    }

    fn depth(&self) -> usize {
        self.kernel.0 * self.kernel.1 * self.channels
    }

    fn block<'a>(
        &'a self,
        rows: Range<usize>,
        terms: Range<usize>,
        buffer: &'a mut Vec<f32>,
    ) -> Matrix<'a> {
        buffer.resize(rows.len() * terms.len(), 0.0);
        for (row, window) in buffer.chunks_exact_mut(terms.len()).zip(rows.clone()) {
            self.window(window, terms.clone(), row);
        }
        Matrix::dense(buffer, (rows.len(), terms.len()))
    }
}

impl Gather<'_> {
    /// Fills `row` with the terms `terms` of window `index`.
    fn window(&self, index: usize, terms: Range<usize>, row: &mut [f32]) {
        let (lines, columns) = self.output;
        let (i, j) = (index / columns % lines, index % columns);
        let map = index / (lines * columns);
        let (height, width) = self.size;
        // One line of the kernel is `span` contiguous numbers in the map's line of `length`
        // numbers.
        let span = self.kernel.1 * self.channels;
        let length = width * self.channels;
        let left = (self.origin.1 + (j * self.stride) as isize) * self.channels as isize;

        let mut rest = row;
        for line in terms.start / span..terms.end.div_ceil(span) {
            let from = terms.start.max(line * span) - line * span;
            let to = terms.end.min((line + 1) * span) - line * span;
            let part;
            (part, rest) = rest.split_at_mut(to - from);
            let y = self.origin.0 + (i * self.stride + line) as isize;
            if y < 0 || y >= height as isize {
                part.fill(0.0);
                continue;
            }
            let source = &self.maps[(map * height + y as usize) * length..][..length];
            let start = left + from as isize;
            // Values before and after the map's line are zero.
            let before = ((-start).max(0) as usize).min(part.len());
            let inside = (length as isize - start).clamp(before as isize, part.len() as isize);
            let inside = inside as usize;
            part[..before].fill(0.0);
            part[inside..].fill(0.0);
            if inside > before {
                let start = (start + before as isize) as usize;
                part[before..inside].copy_from_slice(&source[start..start + inside - before]);
            }
        }
    }
}
