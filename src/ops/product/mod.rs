//! Products of many rows with one matrix: what convolution and linear layers are made of on the CPU
//! (on a GPU: [`cuda`]).
//!
//! Rows x [N,K] come from an implementation of [`Rows`], a block at a time, so that gathered rows
//! never exist all at once. [`times`] is y = x·w + bias, w [K,O]; [`outer`] is gᵀ·x with g [N,O],
//! the weight's gradient [O,K].
//!
//! A row of [`times`] has the same bits whatever the other rows are: every element is one chain of
//! fused multiply-adds over all terms in order (`tile`). The other products are `gemm`'s; `matrix`
//! says how it is held to the same.

#[cfg(feature = "cuda")]
pub mod batched;
#[cfg(feature = "cuda")]
pub mod check;
#[cfg(feature = "cuda")]
mod check_custom;
#[cfg(feature = "cuda")]
pub mod cublaslt;
#[cfg(feature = "cuda")]
pub mod cuda;
mod matrix;
mod outer;
mod panels;
mod tile;
mod times;
#[cfg(feature = "cuda")]
pub mod views;

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::ops::Range;

pub(super) use matrix::{Matrix, multiply};
pub(super) use outer::outer;
pub use panels::Packed;
pub(super) use panels::Panels;
pub(super) use times::{times, times_into, times_then, times_through};

/// Rows that are multiplied at a time: few enough that a block of [`DEPTH`] gathered terms (288
/// KiB) stays in a core's second cache; a multiple of the six rows of a tile.
pub(super) const BLOCK: usize = 144;

/// Terms that are multiplied at a time: up to 512, `gemm` takes them in one chain whatever the
/// other sizes are.
pub(super) const DEPTH: usize = 512;

/// Rows [N,K] that are made a block at a time.
pub(super) trait Rows: Sync {
    /// N.
    fn count(&self) -> usize;

    /// K.
    fn depth(&self) -> usize;

    /// The block `rows`×`terms`; `buffer` may hold it.
    fn block<'a>(
        &'a self,
        rows: Range<usize>,
        terms: Range<usize>,
        buffer: &'a mut Vec<f32>,
    ) -> Matrix<'a>;
}

/// Rows that lie in memory as they are, [N,K].
pub(super) struct Plain<'a> {
    values: &'a [f32],
    depth: usize,
}

impl<'a> Plain<'a> {
    pub fn new(values: &'a [f32], depth: usize) -> Self {
        Self { values, depth }
    }
}

impl Rows for Plain<'_> {
    fn count(&self) -> usize {
        self.values.len() / self.depth
    }

    fn depth(&self) -> usize {
        self.depth
    }

    fn block<'a>(
        &'a self,
        rows: Range<usize>,
        terms: Range<usize>,
        _: &'a mut Vec<f32>,
    ) -> Matrix<'a> {
        let start = rows.start * self.depth + terms.start;
        Matrix::strided(
            &self.values[start..],
            (rows.len(), terms.len()),
            (self.depth, 1),
        )
    }
}

/// Lends `f` a buffer of this thread: a new one would be requested from the system and zeroed in
/// every call. Nested calls get different buffers.
pub(super) fn with_buffer<R>(f: impl FnOnce(&mut Vec<f32>) -> R) -> R {
    thread_local! {
        static BUFFERS: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
    }
    let mut buffer = BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_default();
    let result = f(&mut buffer);
    BUFFERS.with_borrow_mut(|buffers| buffers.push(buffer));
    result
}

/// The first `len` values of a buffer, uninitialised in meaning; it never shrinks, so that each
/// value is zeroed once.
pub(super) fn room(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

/// 0..total in the fewest ranges of at most `longest`, whose lengths differ by one at most.
fn ranges(total: usize, longest: usize) -> impl Iterator<Item = Range<usize>> {
    let count = total.div_ceil(longest);
    let start = move |i: usize| (total * i).div_ceil(count);
    (0..count).map(move |i| start(i)..start(i + 1))
}
