//! A matrix [K,O] in the order in which a product reads it: panels of [`WIDTH`] columns, term after term.
//!
//! A term of a panel is one cache line, so that a tile reads its weights as one stream and each line whole. The last
//! panel is filled up with zeros.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use rayon::prelude::*;

use crate::ops::blocks;

/// Columns of a panel: a cache line of f32.
pub(super) const WIDTH: usize = 16;

/// One term's weights for a panel's columns.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub [f32; WIDTH]);

/// Lines below which panels are packed by one thread.
const FEW: usize = 1 << 10;

/// What is kept of a weight that does not change any more, made at its first use: as much memory as the weight, or up to
/// four times as much for products in fewer multiplications.
#[derive(Debug, Clone, Default)]
pub struct Packed {
    panels: Arc<OnceLock<Panels>>,
    /// Of the products that a linear layer or a convolution is made of in fewer multiplications, where that is allowed.
    factors: Option<Arc<OnceLock<Vec<Panels>>>>,
}

impl Packed {
    /// For products that may be made in fewer multiplications (Strassen's, Winograd's), and so in other bits.
    pub fn for_fast_products() -> Self {
        Self {
            factors: Some(Arc::default()),
            ..Self::default()
        }
    }

    pub(in crate::ops) fn get_or_make(&self, make: impl FnOnce() -> Panels) -> &Panels {
        self.panels.get_or_init(make)
    }

    /// The factors of fewer multiplications, where these are allowed.
    pub(in crate::ops) fn factors(&self, make: impl FnOnce() -> Vec<Panels>) -> Option<&[Panels]> {
        let factors = self.factors.as_ref()?;
        Some(factors.get_or_init(make))
    }
}

#[derive(Debug, Clone)]
pub(in crate::ops) struct Panels {
    lines: Vec<Line>,
    depth: usize,
    columns: usize,
}

impl Panels {
    /// The columns are an operation's outputs: `weight` [O,I,kh,kw], taps = kh·kw; terms in the order of a gathered
    /// window, (tap, input).
    pub fn of_outputs(weight: &[f32], outputs: usize, inputs: usize, taps: usize) -> Self {
        let depth = inputs * taps;
        Self::new((depth, outputs), |columns, lines| {
            let rows: [&[f32]; WIDTH] = std::array::from_fn(|i| {
                let row = (columns.start + i).min(columns.end - 1);
                &weight[row * depth..][..depth]
            });
            for (tap, lines) in lines.chunks_exact_mut(inputs).enumerate() {
                for (input, Line(line)) in lines.iter_mut().enumerate() {
                    for (value, row) in line.iter_mut().zip(rows).take(columns.len()) {
                        *value = row[input * taps + tap];
                    }
                }
            }
        })
    }

    /// `values` [K,O], row after row.
    pub fn of_rows(values: &[f32], columns: usize) -> Self {
        let stride = columns;
        Self::new((values.len() / columns, columns), |columns, lines| {
            for (Line(line), row) in lines.iter_mut().zip(values.chunks_exact(stride)) {
                line[..columns.len()].copy_from_slice(&row[columns.clone()]);
            }
        })
    }

    /// `fill` gets a panel's columns and its lines of zeros.
    fn new(
        (depth, columns): (usize, usize),
        fill: impl Fn(Range<usize>, &mut [Line]) + Sync,
    ) -> Self {
        let mut lines = vec![Line([0.0; WIDTH]); columns.div_ceil(WIDTH) * depth];
        let panel = |(i, lines): (usize, &mut [Line])| {
            fill(i * WIDTH..columns.min((i + 1) * WIDTH), lines);
        };
        if lines.len() <= FEW || blocks::is_serial() {
            lines.chunks_exact_mut(depth).enumerate().for_each(panel);
        } else {
            let panels = lines.par_chunks_exact_mut(depth).enumerate();
            panels.for_each(panel);
        }
        Self {
            lines,
            depth,
            columns,
        }
    }

    /// K and O.
    pub fn size(&self) -> (usize, usize) {
        (self.depth, self.columns)
    }

    /// Number of panels.
    pub(super) fn count(&self) -> usize {
        self.columns.div_ceil(WIDTH)
    }

    /// Some terms of panel `i`.
    #[inline(always)]
    pub(super) fn lines(&self, i: usize, terms: &Range<usize>) -> &[Line] {
        &self.lines[i * self.depth + terms.start..][..terms.len()]
    }
}
