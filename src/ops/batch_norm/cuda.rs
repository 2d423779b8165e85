//! Batch normalization on a GPU: all positions of all images form one map, each channel is a group.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};
use half::bf16;

use crate::ops::Activation;
use crate::ops::channel_norm::cuda::{Norm, Sizes, gradients, moments};
use crate::ops::cuda::{Element, Gpu, View};

/// Holds moments that were computed before, because the caller returns them too.
pub(super) struct BatchNorm {
    /// [3,1,C]: mean, biased variance, 1/√(variance + eps).
    moments: Tensor,
    activation: Activation,
}

fn sizes(shape: &Shape) -> Result<Sizes> {
    let (b, h, w, c) = shape.dims4()?;
    Ok(Sizes {
        images: 1,
        positions: b * h * w,
        channels: c,
        groups: c,
    })
}

impl BatchNorm {
    /// With the batch's own moments.
    pub(super) fn of(x: &Tensor, eps: f64, activation: Activation) -> Result<Self> {
        let gpu = Gpu::of(x.device().as_cuda_device()?)?;
        let moments = moments(&gpu, x, sizes(x.shape())?, eps)?;
        Ok(Self {
            moments,
            activation,
        })
    }

    /// With given mean and variance [C].
    pub(super) fn given(
        mean: &Tensor,
        variance: &Tensor,
        eps: f64,
        activation: Activation,
    ) -> Result<Self> {
        let r = (variance + eps)?.sqrt()?.recip()?;
        let moments = Tensor::stack(&[mean, variance, &r], 0)?.unsqueeze(1)?;
        Ok(Self {
            moments,
            activation,
        })
    }

    /// [C] each.
    pub(super) fn mean_and_variance(&self) -> Result<(Tensor, Tensor)> {
        let row = |i: usize| self.moments.get(i)?.squeeze(0);
        Ok((row(0)?, row(1)?))
    }

    fn norm<'a>(
        &'a self,
        shape: &Shape,
        weight: View<'a, f32>,
        bias: View<'a, f32>,
    ) -> Result<Norm<'a>> {
        Ok(Norm {
            sizes: sizes(shape)?,
            weight,
            bias,
            activation: self.activation,
        })
    }
}

impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        bail!("batch_norm: moments on a GPU do not normalise a map on the CPU")
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
        bias: &CudaStorage,
        bias_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        fn of<T: Element>(
            norm: &Norm,
            moments: &Tensor,
            x: &CudaStorage,
            layout: &Layout,
        ) -> Result<CudaStorage> {
            let gpu = Gpu::of(x.device())?;
            let x = View::<T>::stored(x, layout)?;
            Ok(norm.forward(&gpu, x, moments)?.storage())
        }
        let weight = View::stored(weight, weight_layout)?;
        let bias = View::stored(bias, bias_layout)?;
        let norm = self.norm(layout.shape(), weight, bias)?;
        let y = match x.dtype() {
            DType::F32 => of::<f32>(&norm, &self.moments, x, layout)?,
            DType::BF16 => of::<bf16>(&norm, &self.moments, x, layout)?,
            other => bail!("batch_norm: {other:?} has no kernel"),
        };
        Ok((y, layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gpu = Gpu::of(x.device().as_cuda_device()?)?;
        let norm = self.norm(x.shape(), View::of(weight)?, View::of(bias)?)?;
        // A bias before this norm has no effect: nobody asks for its gradient.
        let sums = false;
        gradients(&gpu, &norm, &self.moments, [x, weight, bias], dy, sums)
    }
}
