//! Rearrangements between operations: candle's own, recorded on the [`Tape`](super::Tape).

use candle_core::shape::ShapeWithOneHole;
use candle_core::{DType, Result, Tensor};

use super::tape::note;

/// x [B,..] + rows [1,..], the same for every image.
pub fn add_to_each(x: &Tensor, rows: &Tensor) -> Result<Tensor> {
    let y = x.broadcast_add(rows)?;
    note(&[x, rows], &y, |_, _, dy| {
        Ok(vec![Some(dy.clone()), Some(dy.sum_keepdim(0)?)])
    });
    Ok(y)
}

/// The mean of all elements.
pub fn mean(x: &Tensor) -> Result<Tensor> {
    let y = x.mean_all()?;
    note(&[x], &y, |inputs, _, dy| {
        let share = (dy / inputs[0].elem_count() as f64)?;
        Ok(vec![Some(
            share.broadcast_as(inputs[0].shape())?.contiguous()?,
        )])
    });
    Ok(y)
}

/// The same values in another shape.
pub fn reshape(x: &Tensor, shape: impl ShapeWithOneHole) -> Result<Tensor> {
    let y = x.reshape(shape)?;
    rearranged(x, y, |dy, x| dy.reshape(x.shape()))
}

/// The same values in another dtype; the gradient is returned in x's dtype.
pub fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if super::cast::serves(x, dtype) {
        return super::tape::apply1(x, super::cast::Cast);
    }
    rearranged(x, x.to_dtype(dtype)?, |dy, x| dy.to_dtype(x.dtype()))
}

/// Records `y`, a rearrangement of `x`; `back` rearranges a gradient back.
pub fn rearranged(
    x: &Tensor,
    y: Tensor,
    back: impl Fn(&Tensor, &Tensor) -> Result<Tensor> + 'static,
) -> Result<Tensor> {
    if y.id() != x.id() {
        note(&[x], &y, move |inputs, _, dy| {
            Ok(vec![Some(back(dy, &inputs[0])?)])
        });
    }
    Ok(y)
}

/// The columns of x [R,C], split into `count` equal parts.
pub fn columns(x: &Tensor, count: usize) -> Result<Vec<Tensor>> {
    let width = x.dim(1)? / count;
    let part = |i: usize| {
        let y = x.narrow(1, i * width, width)?.contiguous()?;
        rearranged(x, y, move |dy, x| {
            dy.pad_with_zeros(1, i * width, x.dim(1)? - (i + 1) * width)
        })
    };
    (0..count).map(part).collect()
}

/// Concatenates tensors along their first dimension.
pub fn stacked(tensors: &[&Tensor]) -> Result<Tensor> {
    let y = Tensor::cat(tensors, 0)?;
    note(tensors, &y, |inputs, _, dy| {
        let mut from = 0;
        let mut part = |x: &Tensor| {
            let rows = x.dim(0)?;
            from += rows;
            Ok(Some(dy.narrow(0, from - rows, rows)?.contiguous()?))
        };
        inputs.iter().map(&mut part).collect()
    });
    Ok(y)
}
