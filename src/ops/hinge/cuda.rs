//! The GPU version: a block for the loss and for the shares, since logits are few; one pass for the
//! gradients.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};

use crate::ops::cuda::{Gpu, Output, View, grid_of, launch};

/// Threads of a block that sums.
const THREADS: u32 = 1024;

pub(super) fn serves(real: &Tensor, fake: &Tensor) -> bool {
    [real, fake]
        .iter()
        .all(|t| t.device().is_cuda() && t.dtype() == DType::F32 && t.elem_count() > 0)
}

pub(super) struct Hinge;

impl CustomOp2 for Hinge {
    fn name(&self) -> &'static str {
        "hinge"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        bail!("hinge: on the CPU it uses plain operations")
    }

    fn cuda_fwd(
        &self,
        real: &CudaStorage,
        real_layout: &Layout,
        fake: &CudaStorage,
        fake_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let gpu = Gpu::of(real.device())?;
        let real = View::<f32>::stored(real, real_layout)?;
        let fake = View::<f32>::stored(fake, fake_layout)?;
        let mut loss = Output::<f32>::new(gpu.device(), 1)?;
        let (of_real, of_fake) = (real.len() as i64, fake.len() as i64);
        // SAFETY: as many logits as are said, and one value.
        unsafe {
            launch!(gpu, "hinge", "hinge_forward", (1, 1, 1), THREADS, 0;
                real, of_real, fake, of_fake, loss.view_mut())?
        };
        Ok((loss.storage(), Shape::from(())))
    }

    fn bwd(
        &self,
        real: &Tensor,
        fake: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gpu = Gpu::of(real.device().as_cuda_device()?)?;
        let wanted = |x: &Tensor| -> Result<Option<Output<f32>>> {
            let output = || Output::new(gpu.device(), x.elem_count());
            x.track_op().then(output).transpose()
        };
        let (mut to_real, mut to_fake) = (wanted(real)?, wanted(fake)?);
        let (of_real, of_fake) = (real.elem_count(), fake.elem_count());
        let grid = grid_of(of_real.max(of_fake), 256);
        let (d_real, d_fake) = (
            to_real.as_mut().map(Output::view_mut),
            to_fake.as_mut().map(Output::view_mut),
        );
        let (x, y, grad) = (
            View::<f32>::of(real)?,
            View::<f32>::of(fake)?,
            View::<f32>::of(grad)?,
        );
        // SAFETY: as many logits and gradients as are said; a gradient that is not requested has no
        // address.
        unsafe {
            launch!(gpu, "hinge", "hinge_backward", grid, 256, 0;
                x, of_real as i64, y, of_fake as i64, grad, d_real, d_fake)?
        };
        Ok((
            to_real.map(|d| d.tensor(real.shape())),
            to_fake.map(|d| d.tensor(fake.shape())),
        ))
    }
}

pub(super) fn shares(real: &Tensor, fake: &Tensor) -> Result<[Tensor; 2]> {
    let gpu = Gpu::of(real.device().as_cuda_device()?)?;
    let mut found = Output::<f32>::new(gpu.device(), 2)?;
    let (real, fake) = (View::<f32>::of(real)?, View::<f32>::of(fake)?);
    let (of_real, of_fake) = (real.len() as i64, fake.len() as i64);
    // SAFETY: as many logits as are said, and two values.
    unsafe {
        launch!(gpu, "hinge", "hinge_shares", (1, 1, 1), THREADS, 0;
            real, of_real, fake, of_fake, found.view_mut())?
    };
    let found = found.tensor(2);
    Ok([found.get(0)?, found.get(1)?])
}
