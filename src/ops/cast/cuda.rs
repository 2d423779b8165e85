//! One pass each way.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use half::bf16;

use crate::ops::cuda::{Element, Gpu, Output, View, grid_of, launch};

pub(in crate::ops) fn serves(x: &Tensor, dtype: DType) -> bool {
    x.device().is_cuda()
        && matches!(
            (x.dtype(), dtype),
            (DType::F32, DType::BF16) | (DType::BF16, DType::F32)
        )
}

/// To the other of f32 and bf16.
pub(in crate::ops) struct Cast;

fn cast<T: Element, U: Element>(gpu: &Gpu, x: View<T>) -> Result<Output<U>> {
    let mut y = Output::<U>::new(gpu.device(), x.len())?;
    let name = format!("cast_{}_{}", T::NAME, U::NAME);
    let grid = grid_of(x.len(), 8 * 256);
    let (whole, count) = (x.whole() as i64, x.len() as i64);
    // SAFETY: `count` elements of x and y each.
    unsafe { launch!(early gpu, "cast", &name, grid, 256, 0; x, y.view_mut(), whole, count)? };
    Ok(y)
}

impl CustomOp1 for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("cast: on the CPU it is candle's")
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let gpu = Gpu::of(x.device())?;
        let y = match x.dtype() {
            DType::F32 => cast::<f32, bf16>(&gpu, View::stored(x, layout)?)?.storage(),
            DType::BF16 => cast::<bf16, f32>(&gpu, View::stored(x, layout)?)?.storage(),
            other => bail!("cast: {other:?} has no kernel"),
        };
        Ok((y, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        if !x.track_op() {
            return Ok(None);
        }
        let gpu = Gpu::of(x.device().as_cuda_device()?)?;
        let dy = dy.contiguous()?;
        Ok(Some(match dy.dtype() {
            DType::F32 => cast::<f32, bf16>(&gpu, View::of(&dy)?)?.tensor(x.shape()),
            _ => cast::<bf16, f32>(&gpu, View::of(&dy)?)?.tensor(x.shape()),
        }))
    }
}
