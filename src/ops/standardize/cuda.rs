//! The GPU's side: one pass each way.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use half::bf16;

use crate::ops::cuda::{Element, Gpu, Output, View, grid_of, launch};

pub(super) fn serves(x: &Tensor, shift: &Tensor, scale: &Tensor, dtype: DType) -> bool {
    let f32_there = |t: &&Tensor| t.device().is_cuda() && t.dtype() == DType::F32;
    [x, shift, scale].iter().all(f32_there) && matches!(dtype, DType::F32 | DType::BF16)
}

pub(super) struct Standardize {
    shift: Tensor,
    scale: Tensor,
    dtype: DType,
}

impl Standardize {
    pub(super) fn new(shift: &Tensor, scale: &Tensor, dtype: DType) -> Self {
        Self {
            shift: shift.detach(),
            scale: scale.detach(),
            dtype,
        }
    }

    fn forward<T: Element>(&self, x: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
        let gpu = Gpu::of(x.device())?;
        let (shift, scale) = (self.shift.contiguous()?, self.scale.contiguous()?);
        let (shift, scale) = (View::<f32>::of(&shift)?, View::<f32>::of(&scale)?);
        let x = View::<f32>::stored(x, layout)?;
        let mut y = Output::<T>::new(gpu.device(), x.len())?;
        let name = format!("standardize_forward_{}", T::NAME);
        let (grid, channels) = (grid_of(x.len(), 8 * 256), scale.len() as i32);
        let (whole, count) = (x.whole() as i64, x.len() as i64);
        // SAFETY: `count` elements of x and y, C of shift and scale.
        unsafe {
            launch!(gpu, "standardize", &name, grid, 256, 0;
                x, shift, scale, y.view_mut(), whole, count, channels)?
        };
        Ok(y.storage())
    }

    fn backward<T: Element>(&self, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let gpu = Gpu::of(x.device().as_cuda_device()?)?;
        let (scale, dy) = (self.scale.contiguous()?, dy.contiguous()?);
        let (scale, dy) = (View::<f32>::of(&scale)?, View::<T>::of(&dy)?);
        assert_eq!(dy.len(), x.elem_count());
        let mut dx = Output::<f32>::new(gpu.device(), dy.len())?;
        let name = format!("standardize_backward_{}", T::NAME);
        let (grid, channels) = (grid_of(dy.len(), 8 * 256), scale.len() as i32);
        let (whole, count) = (dy.whole() as i64, dy.len() as i64);
        // SAFETY: `count` elements of dy and dx, C of scale.
        unsafe {
            launch!(gpu, "standardize", &name, grid, 256, 0;
                dy, scale, dx.view_mut(), whole, count, channels)?
        };
        Ok(dx.tensor(x.shape()))
    }
}

impl CustomOp1 for Standardize {
    fn name(&self) -> &'static str {
        "standardize"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("standardize: on the CPU it is made of plain operations")
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let y = match self.dtype {
            DType::BF16 => self.forward::<bf16>(x, layout)?,
            _ => self.forward::<f32>(x, layout)?,
        };
        Ok((y, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        if !x.track_op() {
            return Ok(None);
        }
        Ok(Some(match self.dtype {
            DType::BF16 => self.backward::<bf16>(x, dy)?,
            _ => self.backward::<f32>(x, dy)?,
        }))
    }
}
