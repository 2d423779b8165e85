//! The GPU's side: one pass each way.

use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Layout, Result, Tensor, bail};
use half::bf16;

use crate::ops::cuda::{Element, Gpu, Output, View, launch, lines};

pub(super) fn forward(x: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
    match x.dtype() {
        DType::F32 => forward_of::<f32>(x, layout),
        DType::BF16 => forward_of::<bf16>(x, layout),
        other => bail!("upsample: {other:?} has no kernel"),
    }
}

fn forward_of<T: Element>(x: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
    let gpu = Gpu::of(x.device())?;
    let (b, h, w, c) = layout.shape().dims4()?;
    let x = View::<T>::stored(x, layout)?;
    let mut y = Output::<T>::new(gpu.device(), 4 * x.len())?;
    let vector = x.vector(c);
    let name = format!("upsample_forward_{}_{vector}", T::NAME);
    let (grid, [h, w, c]) = (lines(b, h, w, c / vector), [h, w, c].map(|n| n as i32));
    // SAFETY: B·H·W·C elements of x, four times as many of y.
    unsafe { launch!(gpu, "upsample", &name, grid, 256, 0; x, y.view_mut(), h, w, c)? };
    Ok(y.storage())
}

/// dx
pub(super) fn backward(x: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
    match x.dtype() {
        DType::F32 => backward_of::<f32>(x, dy),
        DType::BF16 => backward_of::<bf16>(x, dy),
        other => bail!("upsample: {other:?} has no kernel"),
    }
}

fn backward_of<T: Element>(x: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
    let gpu = Gpu::of(x.device().as_cuda_device()?)?;
    let ((b, h, w, c), dy) = (x.dims4()?, dy.contiguous()?);
    let dy = View::<T>::of(&dy)?;
    assert_eq!(dy.len(), 4 * x.elem_count());
    let mut dx = Output::<T>::new(gpu.device(), x.elem_count())?;
    let vector = dy.vector(c);
    let name = format!("upsample_backward_{}_{vector}", T::NAME);
    let (grid, [h, w, c]) = (lines(b, h, w, c / vector), [h, w, c].map(|n| n as i32));
    // SAFETY: as asserted.
    unsafe { launch!(gpu, "upsample", &name, grid, 256, 0; dy, dx.view_mut(), h, w, c)? };
    Ok(Some(dx.tensor(x.shape())))
}
