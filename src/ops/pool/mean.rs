//! The mean over a map's positions on a GPU, f32 or f16: [B,H,W,C] → f32 [B,C]; no gradient.

use candle_core::{DType, Result, Tensor, bail};
use half::f16;

use crate::ops::cuda::{Element, Gpu, Output, View, launch};

/// Threads side by side in a block (`ACROSS` in kernel_mean.cu).
const ACROSS: usize = 32;

pub fn mean_over_positions(x: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::F32 => mean_of::<f32>(x),
        DType::F16 => mean_of::<f16>(x),
        other => bail!("mean_over_positions: {other:?} has no kernel"),
    }
}

fn mean_of<T: Element>(x: &Tensor) -> Result<Tensor> {
    let gpu = Gpu::of(x.device().as_cuda_device()?)?;
    let (b, h, w, c) = x.dims4()?;
    let x = View::<T>::of(x)?;
    let mut y = Output::<f32>::new(gpu.device(), b * c)?;
    let vector = x.vector(c);
    let grid = (c.div_ceil(ACROSS * vector) as u32, b as u32, 1);
    let name = format!("means_{}_{vector}", T::NAME);
    // SAFETY: B·H·W·C elements of x, B·C of y.
    unsafe {
        launch!(gpu, "pool_mean", &name, grid, 256, 0; x, y.view_mut(), (h * w) as i32, c as i32)?
    };
    Ok(y.tensor((b, c)))
}
