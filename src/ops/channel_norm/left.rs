//! The tiles of a map that the convolution which wrote it left for the norm that comes next: of its
//! result, and of the gradient of its input for the norm that made that input.
//!
//! Only those of the last convolution are kept, until the next one or until they are taken: a norm
//! that does not follow at once reads its map as any other. They belong to one tensor, by its
//! [`TensorId`], which no other tensor ever gets: a gradient to which another is added is a new
//! one.

use std::cell::RefCell;

use candle_core::{Tensor, TensorId};

use super::cuda::Tiles;

/// Tiles, with their map's id once it is a tensor.
type Left = RefCell<Option<(Option<TensorId>, Tiles)>>;

thread_local! {
    static LEFT: Left = const { RefCell::new(None) };
    /// Of a gradient, Σ dz and Σ dz·x̂ in place of the moments.
    static SUMS: Left = const { RefCell::new(None) };
}

/// Of a result that a kernel is writing, or nothing.
pub(in crate::ops) fn leave(tiles: Option<Tiles>) {
    LEFT.set(tiles.map(|tiles| (None, tiles)));
}

/// What the last convolution left is of its result `y`.
pub(in crate::ops) fn belong_to(y: &Tensor) {
    LEFT.with_borrow_mut(|left| name(left, y));
}

/// The tiles of `x`, if they were left.
pub(in crate::ops) fn take(x: &Tensor) -> Option<Tiles> {
    LEFT.with_borrow_mut(|left| take_of(left, x))
}

/// Like [`leave`], of a gradient.
pub(in crate::ops) fn leave_sums(tiles: Option<Tiles>) {
    SUMS.set(tiles.map(|tiles| (None, tiles)));
}

/// Like [`belong_to`], of the gradient `dx`.
pub(in crate::ops) fn sums_belong_to(dx: &Tensor) {
    SUMS.with_borrow_mut(|left| name(left, dx));
}

/// The sums over tiles of the gradient `dy`, if they were left.
pub(in crate::ops) fn take_sums(dy: &Tensor) -> Option<Tiles> {
    SUMS.with_borrow_mut(|left| take_of(left, dy))
}

fn name(left: &mut Option<(Option<TensorId>, Tiles)>, map: &Tensor) {
    if let Some((of @ None, _)) = left {
        *of = Some(map.id());
    }
}

fn take_of(left: &mut Option<(Option<TensorId>, Tiles)>, map: &Tensor) -> Option<Tiles> {
    let (_, tiles) = left.take_if(|(of, _)| *of == Some(map.id()))?;
    Some(tiles)
}
