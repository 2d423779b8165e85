//! The GPU's side: which kernels compute a convolution of these sizes on this card.

use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Layout, Result, Shape, Tensor, bail};
use half::bf16;

use super::general;
use super::op::Conv2d;
use crate::ops::column_sums::column_sums;
use crate::ops::cuda::{Gpu, View};
use crate::ops::product::views::Multiply;

type Input<'a> = (&'a CudaStorage, &'a Layout);

pub(super) fn forward(
    op: &Conv2d,
    x: Input,
    weight: Input,
    bias: Option<Input>,
) -> Result<(CudaStorage, Shape)> {
    let (b, ..) = x.1.shape().dims4()?;
    let (height, width) = op.window.output;
    let y = match x.0.dtype() {
        DType::F32 => forward_of::<f32>(op, b, x, weight, bias)?,
        DType::BF16 => forward_of::<bf16>(op, b, x, weight, bias)?,
        other => bail!("conv2d: {other:?} has no kernels"),
    };
    Ok((y, (b, height, width, op.channels.1).into()))
}

fn forward_of<T: Multiply>(
    op: &Conv2d,
    maps: usize,
    x: Input,
    weight: Input,
    bias: Option<Input>,
) -> Result<CudaStorage> {
    let gpu = Gpu::of(x.0.device())?;
    let bias = bias.map(|(b, layout)| View::<f32>::stored(b, layout));
    let y = general::forward(
        &gpu,
        op,
        maps,
        View::<T>::stored(x.0, x.1)?,
        View::<f32>::stored(weight.0, weight.1)?,
        bias.transpose()?,
    )?;
    Ok(y.storage())
}

/// Gradients of x, the weight and the bias, each where the graph tracks it.
pub(super) fn backward(
    op: &Conv2d,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    grad: &Tensor,
) -> Result<[Option<Tensor>; 3]> {
    match x.dtype() {
        DType::F32 => backward_of::<f32>(op, x, weight, bias, grad),
        DType::BF16 => backward_of::<bf16>(op, x, weight, bias, grad),
        other => bail!("conv2d: {other:?} has no kernels"),
    }
}

fn backward_of<T: Multiply>(
    op: &Conv2d,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    grad: &Tensor,
) -> Result<[Option<Tensor>; 3]> {
    let gpu = Gpu::of(grad.device().as_cuda_device()?)?;
    let (maps, grads) = (x.dim(0)?, View::<T>::of(grad)?);
    let dx = match x.track_op() {
        true => {
            let weight = View::<f32>::of(weight)?;
            let dx = general::input_gradient(&gpu, op, maps, weight, grads)?;
            Some(dx.tensor(x.shape()))
        }
        false => None,
    };
    let dw = match weight.track_op() {
        true => Some(weight_grad(op, x, grad)?),
        false => None,
    };
    let db = match bias.filter(|bias| bias.track_op()) {
        Some(bias) => Some(column_sums(&gpu, grads, op.channels.1)?.tensor(bias.shape())),
        None => None,
    };
    Ok([dx, dw, db])
}

/// dL/dw f32 [O,I,kh,kw].
pub(super) fn weight_grad(op: &Conv2d, x: &Tensor, grad: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::F32 => weight_grad_of::<f32>(op, x, grad),
        DType::BF16 => weight_grad_of::<bf16>(op, x, grad),
        other => bail!("conv2d: {other:?} has no kernels"),
    }
}

fn weight_grad_of<T: Multiply>(op: &Conv2d, x: &Tensor, grad: &Tensor) -> Result<Tensor> {
    let gpu = Gpu::of(grad.device().as_cuda_device()?)?;
    let (x_view, grads) = (View::<T>::of(x)?, View::<T>::of(grad)?);
    let dw = general::weight_gradient(&gpu, op, x.dim(0)?, x_view, grads)?;
    let ((i, o), (kh, kw)) = (op.channels, op.window.kernel);
    Ok(dw.tensor((o, i, kh, kw)))
}
