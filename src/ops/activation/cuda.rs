//! The GPU version of the rectifiers and of SiLU: one pass forward, one backward.

use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Layout, Result, Tensor, bail};
use half::bf16;

use crate::ops::cuda::{Element, Gpu, Output, View, grid_of, launch};

/// The activation function.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) enum Function {
    LeakyRelu { slope: f32 },
    Silu,
}

impl Function {
    fn name(self, direction: &str, element: &str) -> String {
        match self {
            Self::LeakyRelu { .. } => format!("{direction}_leaky_{element}"),
            Self::Silu => format!("{direction}_silu_{element}"),
        }
    }

    fn slope(self) -> f32 {
        match self {
            Self::LeakyRelu { slope } => slope,
            Self::Silu => 0.0,
        }
    }
}

pub(in crate::ops) fn forward(
    f: Function,
    x: &CudaStorage,
    layout: &Layout,
) -> Result<CudaStorage> {
    match x.dtype() {
        DType::F32 => forward_of::<f32>(f, x, layout),
        DType::BF16 => forward_of::<bf16>(f, x, layout),
        other => bail!("activation: {other:?} has no kernel"),
    }
}

fn forward_of<T: Element>(f: Function, x: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
    let gpu = Gpu::of(x.device())?;
    let x = View::<T>::stored(x, layout)?;
    let mut y = Output::<T>::new(gpu.device(), x.len())?;
    let (name, grid) = (f.name("forward", T::NAME), grid_of(x.len(), 8 * 256));
    let (whole, count) = (x.whole() as i64, x.len() as i64);
    // SAFETY: `count` elements of x and y each.
    unsafe {
        launch!(gpu, "activation", &name, grid, 256, 0; x, y.view_mut(), whole, count, f.slope())?
    };
    Ok(y.storage())
}

/// dx, from x and dy.
pub(in crate::ops) fn backward(f: Function, x: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
    if !x.track_op() {
        return Ok(None);
    }
    match x.dtype() {
        DType::F32 => backward_of::<f32>(f, x, dy),
        DType::BF16 => backward_of::<bf16>(f, x, dy),
        other => bail!("activation: {other:?} has no kernel"),
    }
}

fn backward_of<T: Element>(f: Function, x: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
    let gpu = Gpu::of(x.device().as_cuda_device()?)?;
    let (shape, dy) = (x.shape(), dy.contiguous()?);
    let (x, dy) = (View::<T>::of(x)?, View::<T>::of(&dy)?);
    assert_eq!(x.len(), dy.len());
    let mut dx = Output::<T>::new(gpu.device(), x.len())?;
    let (name, grid) = (f.name("backward", T::NAME), grid_of(x.len(), 8 * 256));
    let (whole, count) = (x.whole().min(dy.whole()) as i64, x.len() as i64);
    // SAFETY: `count` elements of x, dy and dx each.
    unsafe {
        launch!(gpu, "activation", &name, grid, 256, 0; x, dy, dx.view_mut(), whole, count, f.slope())?
    };
    Ok(Some(dx.tensor(shape)))
}
