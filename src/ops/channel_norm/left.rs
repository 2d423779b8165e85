//! The tiles of a map that the convolution which wrote it left for the norm that comes next.
//!
//! Only those of the last convolution are kept, until the next one or until they are taken: a norm
//! that does not follow at once reads its map as any other. They belong to one tensor, by its
//! [`TensorId`], which no other tensor ever gets.

use std::cell::RefCell;

use candle_core::{Tensor, TensorId};

use super::cuda::Tiles;

thread_local! {
    /// With the map's id, once it is a tensor.
    static LEFT: RefCell<Option<(Option<TensorId>, Tiles)>> = const { RefCell::new(None) };
}

/// Of a result that a kernel is writing, or nothing.
pub(in crate::ops) fn leave(tiles: Option<Tiles>) {
    LEFT.set(tiles.map(|tiles| (None, tiles)));
}

/// What the last convolution left is of its result `y`.
pub(in crate::ops) fn belong_to(y: &Tensor) {
    LEFT.with_borrow_mut(|left| {
        if let Some((of @ None, _)) = left {
            *of = Some(y.id());
        }
    });
}

/// The tiles of `x`, if they were left.
pub(in crate::ops) fn take(x: &Tensor) -> Option<Tiles> {
    LEFT.with_borrow_mut(|left| {
        let (_, tiles) = left.take_if(|(of, _)| *of == Some(x.id()))?;
        Some(tiles)
    })
}
