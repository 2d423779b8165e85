//! The GPU version: one pass over both maps forward, one backward.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};
use half::bf16;

use crate::ops::cuda::{Element, Gpu, Output, View, grid_of, launch};
use crate::ops::{slices, sums};

pub(super) fn serves(x: &Tensor, y: &Tensor) -> bool {
    x.device().is_cuda()
        && slices::have_kernels(&[x, y])
        && x.dtype() == y.dtype()
        && x.shape() == y.shape()
        && x.elem_count() > 0
}

pub(super) struct MeanSquaredError;

impl CustomOp2 for MeanSquaredError {
    fn name(&self) -> &'static str {
        "mean_squared_error"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        bail!("mean_squared_error: on the CPU it uses plain operations")
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        y: &CudaStorage,
        y_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (x, y) = ((x, x_layout), (y, y_layout));
        let mean = match x.0.dtype() {
            DType::F32 => forward_of::<f32>(x, y)?,
            DType::BF16 => forward_of::<bf16>(x, y)?,
            other => bail!("mean_squared_error: {other:?} has no kernel"),
        };
        Ok((mean, Shape::from(())))
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        match x.dtype() {
            DType::F32 => backward_of::<f32>(x, y, grad),
            DType::BF16 => backward_of::<bf16>(x, y, grad),
            other => bail!("mean_squared_error: {other:?} has no kernel"),
        }
    }
}

type Input<'a> = (&'a CudaStorage, &'a Layout);

fn forward_of<T: Element>(x: Input, y: Input) -> Result<CudaStorage> {
    let gpu = Gpu::of(x.0.device())?;
    let (x, y) = (View::<T>::stored(x.0, x.1)?, View::<T>::stored(y.0, y.1)?);
    assert_eq!(x.len(), y.len());
    let grid = grid_of(x.len(), 8 * 256);
    let mut partials = Output::<f32>::new(gpu.device(), grid.0 as usize)?;
    let name = format!("error_forward_{}", T::NAME);
    let (whole, count) = (x.whole().min(y.whole()) as i64, x.len() as i64);
    // SAFETY: `count` elements of x and y, one sum per block.
    unsafe {
        launch!(gpu, "mean_squared_error", &name, grid, 256, 0;
            x, y, partials.view_mut(), whole, count)?
    };
    Ok(sums::of_blocks(&gpu, &partials, 1.0 / x.len() as f64)?.storage())
}

fn backward_of<T: Element>(
    x: &Tensor,
    y: &Tensor,
    grad: &Tensor,
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let gpu = Gpu::of(x.device().as_cuda_device()?)?;
    let shape = x.shape();
    let wanted = |x: &Tensor| -> Result<Option<Output<T>>> {
        let output = || Output::new(gpu.device(), x.elem_count());
        x.track_op().then(output).transpose()
    };
    let (mut dx, mut dy) = (wanted(x)?, wanted(y)?);
    let (x, y, grad) = (View::<T>::of(x)?, View::<T>::of(y)?, View::<f32>::of(grad)?);
    let name = format!("error_backward_{}", T::NAME);
    let (whole, count) = (x.whole().min(y.whole()) as i64, x.len() as i64);
    let (to_x, to_y) = (
        dx.as_mut().map(Output::view_mut),
        dy.as_mut().map(Output::view_mut),
    );
    let grid = grid_of(x.len(), 8 * 256);
    // SAFETY: `count` elements each; a gradient that is not requested has no address.
    unsafe {
        launch!(gpu, "mean_squared_error", &name, grid, 256, 0;
            x, y, grad, to_x, to_y, whole, count)?
    };
    Ok((dx.map(|d| d.tensor(shape)), dy.map(|d| d.tensor(shape))))
}
