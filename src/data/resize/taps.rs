//! The weights of Pillow's resampling.

use std::ops::Range;

use super::Filter;

/// Fractional bits of a weight: 32, minus 8 for a pixel, minus 2 for sums above 1 and the sign.
pub(super) const PRECISION: u32 = 32 - 8 - 2;

/// The weights of a range of output positions. Each has room for as many as the longest takes.
pub(super) struct Taps {
    /// Where each output position's weights begin in the input.
    pub first: Vec<usize>,
    /// How many of them there are.
    pub counts: Vec<usize>,
    most: usize,
    weights: Vec<f64>,
}

impl Taps {
    /// The weights of the output positions `range` of `output`.
    pub fn new(input: usize, output: usize, filter: Filter, range: Range<usize>) -> Self {
        let scale = input as f64 / output as f64;
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        let extent = |x: usize| {
            let center = (x as f64 + 0.5) * scale;
            // Both are truncated towards 0, as in C's conversion.
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(input);
            (center, first, end)
        };
        let count = |x| {
            let (_, first, end) = extent(x);
            end - first
        };
        let counts: Vec<usize> = range.clone().map(count).collect();
        let most = counts.iter().copied().max().unwrap_or(0);
        let mut taps = Self {
            first: Vec::with_capacity(range.len()),
            weights: vec![0.0; most * range.len()],
            counts,
            most,
        };
        for (x, weights) in range.zip(taps.weights.chunks_exact_mut(most.max(1))) {
            let (center, first, end) = extent(x);
            let weights = &mut weights[..end - first];
            for (i, w) in (first..end).zip(&mut *weights) {
                *w = filter.at((i as f64 - center + 0.5) / stretch);
            }
            let sum: f64 = weights.iter().sum();
            if sum != 0.0 {
                weights.iter_mut().for_each(|w| *w /= sum);
            }
            taps.first.push(first);
        }
        taps
    }

    /// Where each output position begins in the input, and its weights.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &[f64])> {
        let rows = self.weights.chunks_exact(self.most.max(1));
        let rows = rows.zip(&self.counts).map(|(row, &count)| &row[..count]);
        self.first.iter().copied().zip(rows)
    }

    /// The input positions that have a weight.
    pub fn reach(&self) -> Range<usize> {
        let ends = self.first.iter().zip(&self.counts).map(|(f, c)| f + c);
        let first = self.first.iter().copied().min().unwrap_or(0);
        first..ends.max().unwrap_or(first)
    }

    /// As [`Taps::iter`], in fixed point.
    pub fn fixed_point(&self) -> FixedTaps {
        let fixed = |w: &f64| {
            let scaled = w * f64::from(1 << PRECISION);
            (scaled + 0.5f64.copysign(scaled)) as i32
        };
        FixedTaps {
            first: self.first.clone(),
            counts: self.counts.clone(),
            most: self.most,
            weights: self.weights.iter().map(fixed).collect(),
        }
    }
}

/// [`Taps`] as numbers with [`PRECISION`] fractional bits.
pub(super) struct FixedTaps {
    first: Vec<usize>,
    counts: Vec<usize>,
    most: usize,
    weights: Vec<i32>,
}

impl FixedTaps {
    pub fn len(&self) -> usize {
        self.first.len()
    }

    /// The most weights that a position has.
    #[cfg(target_arch = "x86_64")]
    pub fn most(&self) -> usize {
        self.most
    }

    pub fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        let rows = self.weights.chunks_exact(self.most.max(1));
        let rows = rows.zip(&self.counts).map(|(row, &count)| &row[..count]);
        self.first.iter().copied().zip(rows)
    }
}
