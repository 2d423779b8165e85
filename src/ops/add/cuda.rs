//! The GPU version: one pass.

use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Layout, Result, Tensor, bail};
use half::bf16;

use crate::ops::cuda::{Element, Gpu, Output, View, grid_of, launch};

type Input<'a> = (&'a CudaStorage, &'a Layout);

pub(super) fn forward(a: Input, b: Input) -> Result<CudaStorage> {
    match a.0.dtype() {
        DType::F32 => of::<f32>(a, b),
        DType::BF16 => of::<bf16>(a, b),
        other => bail!("add: {other:?} has no kernel"),
    }
}

fn of<T: Element>(a: Input, b: Input) -> Result<CudaStorage> {
    let gpu = Gpu::of(a.0.device())?;
    let (a, b) = (View::<T>::stored(a.0, a.1)?, View::<T>::stored(b.0, b.1)?);
    let mut y = Output::<T>::new(gpu.device(), a.len())?;
    let name = format!("add_{}", T::NAME);
    let grid = grid_of(a.len(), 8 * 256);
    let (whole, count) = (a.whole().min(b.whole()) as i64, a.len() as i64);
    // SAFETY: `count` elements of a, b and y each.
    unsafe { launch!(early gpu, "add", &name, grid, 256, 0; a, b, y.view_mut(), whole, count)? };
    Ok(y.storage())
}

/// a + weight·b in f32, weight a scalar in f64.
pub(super) fn add_scaled(a: &Tensor, b: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let gpu = Gpu::of(a.device().as_cuda_device()?)?;
    let shape = a.shape();
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    let (a, b) = (View::<f32>::of(&a)?, View::<f32>::of(&b)?);
    let weight = View::<f64>::of(weight)?;
    let mut y = Output::<f32>::new(gpu.device(), a.len())?;
    let grid = grid_of(a.len(), 8 * 256);
    let (whole, count) = (a.whole().min(b.whole()) as i64, a.len() as i64);
    // SAFETY: `count` elements of a, b and y each, and one weight.
    unsafe {
        launch!(early gpu, "add", "add_scaled_f32", grid, 256, 0;
            a, b, weight, y.view_mut(), whole, count)?
    };
    Ok(y.tensor(shape))
}
