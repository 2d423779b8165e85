//! A matrix [K,O] in the order in which a product reads it: panels of [`WIDTH`] columns, term after
//! term.
//!
//! A term of a panel is one cache line, so that a tile reads its weights as one stream and each
//! line whole. The last panel is filled up with zeros.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

#[cfg(feature = "cuda")]
use candle_core::Tensor;
use rayon::prelude::*;

use crate::ops::blocks;
#[cfg(feature = "cuda")]
use crate::ops::conv2d::Form;

/// Columns of a panel: a cache line of f32.
pub(super) const WIDTH: usize = 16;

/// One term's weights for a panel's columns.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub [f32; WIDTH]);

/// Lines below which panels are packed by one thread.
const FEW: usize = 1 << 10;

/// Copies of a weight that no longer changes, in the orders in which kernels read it, each made at
/// its first use. On a CPU they take as much memory as the weight, or four times as much for
/// Winograd's convolution; on a GPU half as much or a little less than it.
#[derive(Clone, Default)]
pub struct Packed(Arc<Copies>);

#[derive(Default)]
struct Copies {
    panels: OnceLock<Panels>,
    /// The 36 factors of Winograd's convolution, if that is allowed.
    winograd: Option<OnceLock<Vec<Panels>>>,
    #[cfg(feature = "cuda")]
    packed: OnceLock<Tensor>,
    #[cfg(feature = "cuda")]
    folded: OnceLock<Tensor>,
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Packed") // without its numbers
    }
}

impl Packed {
    /// For a convolution that may be computed by Winograd's algorithm, with other bits.
    pub fn for_winograd() -> Self {
        Self(Arc::new(Copies {
            winograd: Some(OnceLock::new()),
            ..Copies::default()
        }))
    }

    pub(in crate::ops) fn get_or_make(&self, make: impl FnOnce() -> Panels) -> &Panels {
        self.0.panels.get_or_init(make)
    }

    /// In bf16, for a convolution on a GPU.
    #[cfg(feature = "cuda")]
    pub(in crate::ops) fn on_gpu(&self, form: Form) -> &OnceLock<Tensor> {
        match form {
            Form::Packed => &self.0.packed,
            Form::Folded => &self.0.folded,
        }
    }

    /// The factors of Winograd's convolution, if that is allowed.
    pub(in crate::ops) fn winograd(&self, make: impl FnOnce() -> Vec<Panels>) -> Option<&[Panels]> {
        let factors = self.0.winograd.as_ref()?;
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
    /// The columns are an operation's outputs: `weight` [O,I,kh,kw], taps = kh·kw; terms in the
    /// order of a gathered window, (tap, input).
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

    /// None of no columns, to be filled.
    pub const EMPTY: Self = Self {
        lines: Vec::new(),
        depth: 0,
        columns: 0,
    };

    /// Becomes `depth` rows of `columns` values that lie `stride` apart in `values`, on this
    /// thread.
    pub fn refill(&mut self, values: &[f32], (depth, columns): (usize, usize), stride: usize) {
        self.resize(depth, columns);
        for (i, lines) in self.lines.chunks_exact_mut(depth).enumerate() {
            let columns = i * WIDTH..columns.min((i + 1) * WIDTH);
            for (Line(line), row) in lines.iter_mut().zip(values.chunks(stride)) {
                line[..columns.len()].copy_from_slice(&row[columns.clone()]);
            }
        }
    }

    /// [`Panels::refill`] with the transpose of `columns` rows of `depth` values side by side.
    pub fn refill_transposed(&mut self, values: &[f32], (depth, columns): (usize, usize)) {
        self.resize(depth, columns);
        for (i, lines) in self.lines.chunks_exact_mut(depth).enumerate() {
            let columns = i * WIDTH..columns.min((i + 1) * WIDTH);
            let rows: [&[f32]; WIDTH] = std::array::from_fn(|i| {
                &values[(columns.start + i).min(columns.end - 1) * depth..][..depth]
            });
            for (k, Line(line)) in lines.iter_mut().enumerate() {
                for (value, row) in line.iter_mut().zip(rows).take(columns.len()) {
                    *value = row[k];
                }
            }
        }
    }

    /// Lines for a matrix of this size; those of another size become zeros, which fill up a last
    /// panel.
    fn resize(&mut self, depth: usize, columns: usize) {
        if (self.depth, self.columns) != (depth, columns) {
            self.lines.clear();
            let count = columns.div_ceil(WIDTH) * depth;
            self.lines.resize(count, Line([0.0; WIDTH]));
            (self.depth, self.columns) = (depth, columns);
        }
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
