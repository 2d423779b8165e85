//! Group normalization on a GPU; the moments are kept for the backward pass.

use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Layout, Result, Shape, Tensor, bail};
use half::bf16;

use super::GroupNorm;
use crate::ops::channel_norm::cuda::{Norm, Sizes, gradients, moments};
use crate::ops::cuda::{Element, Gpu, View};

type Input<'a> = (&'a CudaStorage, &'a Layout);
type Gradients = (Option<Tensor>, Option<Tensor>, Option<Tensor>);

impl GroupNorm {
    fn sizes(&self, shape: &Shape) -> Result<Sizes> {
        let (b, h, w, c) = shape.dims4()?;
        Ok(Sizes {
            images: b,
            positions: h * w,
            channels: c,
            groups: self.groups,
        })
    }
}

pub(super) fn forward(
    norm: &GroupNorm,
    x: Input,
    weight: Input,
    bias: Input,
) -> Result<CudaStorage> {
    match x.0.dtype() {
        DType::F32 => of::<f32>(norm, x, weight, bias),
        DType::BF16 => of::<bf16>(norm, x, weight, bias),
        other => bail!("group_norm: {other:?} has no kernel"),
    }
}

fn of<T: Element>(norm: &GroupNorm, x: Input, weight: Input, bias: Input) -> Result<CudaStorage> {
    let gpu = Gpu::of(x.0.device())?;
    let sizes = norm.sizes(x.1.shape())?;
    let of = Norm {
        sizes,
        weight: View::stored(weight.0, weight.1)?,
        bias: View::stored(bias.0, bias.1)?,
        activation: norm.activation,
    };
    let tiles = norm.tiles.lock();
    let tiles = tiles
        .expect("no thread panics while it holds this lock")
        .take();
    let (y, moments) = of.normalized(&gpu, View::<T>::stored(x.0, x.1)?, tiles, norm.eps)?;
    norm.moments_on_gpu.get_or_init(|| moments);
    Ok(y.storage())
}

pub(super) fn backward(
    norm: &GroupNorm,
    [x, weight, bias]: [&Tensor; 3],
    dy: &Tensor,
) -> Result<Gradients> {
    let gpu = Gpu::of(x.device().as_cuda_device()?)?;
    let sizes = norm.sizes(x.shape())?;
    let kept = match norm.moments_on_gpu.get() {
        Some(kept) => kept.clone(),
        None => moments(&gpu, x, sizes, norm.eps)?,
    };
    let norm = Norm {
        sizes,
        weight: View::of(weight)?,
        bias: View::of(bias)?,
        activation: norm.activation,
    };
    gradients(&gpu, &norm, &kept, [x, weight, bias], dy, true)
}
