//! Checks that name the operation, the argument, what was expected and what was found.

use candle_core::{DType, Result, Tensor, bail};

/// Checks that the argument `name` of `op` has exactly this shape.
pub(super) fn shape(op: &str, name: &str, tensor: &Tensor, expected: &[usize]) -> Result<()> {
    if tensor.dims() != expected {
        bail!(
            "{op}: {name} has shape {:?}, expected {expected:?}",
            tensor.dims()
        );
    }
    Ok(())
}

/// Checks that the argument `name` of `op` has this many dimensions, written as `letters`; returns
/// them.
pub(super) fn dims<const D: usize>(
    op: &str,
    name: &str,
    tensor: &Tensor,
    letters: &str,
) -> Result<[usize; D]> {
    match tensor.dims().try_into() {
        Ok(dims) => Ok(dims),
        Err(_) => bail!(
            "{op}: {name} has shape {:?}, expected {letters}",
            tensor.dims()
        ),
    }
}

/// Checks that the argument `name` of `op` has this dtype.
pub(super) fn dtype(op: &str, name: &str, tensor: &Tensor, expected: DType) -> Result<()> {
    if tensor.dtype() != expected {
        bail!(
            "{op}: {name} is {:?}, expected {expected:?}",
            tensor.dtype()
        );
    }
    Ok(())
}

/// The size of the last dimension, which must be at least 1.
pub(super) fn last_dim(op: &str, name: &str, tensor: &Tensor) -> Result<usize> {
    match tensor.dims().last() {
        Some(&c) if c > 0 => Ok(c),
        _ => bail!(
            "{op}: {name} has shape {:?}, expected [..,C] with C at least 1",
            tensor.dims()
        ),
    }
}
