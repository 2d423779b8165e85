//! A tensor from a storage's bytes, by offset, shape and strides, which may be those of any view.

use candle_core::Tensor;
use safetensors::Dtype;

use super::objects::{Elements, TensorRef};
use crate::store::elements;

/// The bytes that the tensors of one file may take in memory. Views that share or repeat a storage
/// are legitimate in small numbers, but could otherwise request 2^60 bytes.
pub(super) struct Budget(u64);

impl Budget {
    pub(super) fn of_file(size: u64) -> Self {
        Self(size.saturating_mul(16).saturating_add(1 << 20))
    }

    fn take(&mut self, bytes: usize) -> Result<(), String> {
        self.0 = self
            .0
            .checked_sub(bytes as u64)
            .ok_or("takes more memory than its file accounts for")?;
        Ok(())
    }
}

/// Errors say what is wrong, in words that follow the tensor's name.
pub(super) fn tensor(
    tensor: &TensorRef,
    storage: &[u8],
    budget: &mut Budget,
) -> Result<Tensor, String> {
    let (shape, strides) = (&tensor.shape, &tensor.strides);
    let dtype = dtype(tensor)?;
    let width = elements::width(dtype)
        .ok_or_else(|| format!("has elements of type {dtype:?}, which is not read"))?;
    let beyond = || format!("of shape {shape:?} reaches beyond its storage");
    let count = shape
        .iter()
        .try_fold(1usize, |n, d| n.checked_mul(*d))
        .ok_or_else(beyond)?;
    if count > 0 {
        let last = shape
            .iter()
            .zip(strides)
            .try_fold(tensor.offset, |at, (d, s)| {
                at.checked_add((d - 1).checked_mul(*s)?)
            });
        let end = last.and_then(|last| last.checked_add(1)?.checked_mul(width));
        if end.is_none_or(|end| end > storage.len()) {
            return Err(beyond());
        }
    }
    budget.take(count.checked_mul(width).ok_or_else(beyond)?)?;
    let begin = tensor.offset.saturating_mul(width);
    let bytes = if count == 0 {
        Vec::new()
    } else if is_contiguous(shape, strides) {
        storage[begin..begin + count * width].to_vec()
    } else {
        gather(&storage[begin..], shape, strides, width, count)
    };
    elements::tensor(dtype, &bytes, shape)
}

/// The type of a tensor's elements in the file.
pub(super) fn dtype(tensor: &TensorRef) -> Result<Dtype, String> {
    match &tensor.elements {
        Elements::Read(dtype) => Ok(*dtype),
        Elements::Unread(name, _) => Err(format!("has elements of type {name}, which is not read")),
    }
}

fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(d, s)| {
        let fits = *d == 1 || *s == expected;
        expected *= d;
        fits
    })
}

/// Copies the elements in the order of `shape`, from wherever `strides` puts them.
fn gather(
    storage: &[u8],
    shape: &[usize],
    strides: &[usize],
    width: usize,
    count: usize,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(count * width);
    let (mut index, mut at) = (vec![0; shape.len()], 0);
    for _ in 0..count {
        out.extend_from_slice(&storage[at * width..(at + 1) * width]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at -= strides[axis] * shape[axis];
            index[axis] = 0;
        }
    }
    out
}
