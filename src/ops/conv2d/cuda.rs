//! The GPU's side: which kernels compute a convolution of these sizes on this card.
//!
//! Maps of bf16 with 3 channels or 1 on one side take kernels at the speed of memory (thin.rs),
//! others on Hopper implicit matrix products (hopper.rs, weight_hopper.rs); everything else gathers
//! its windows (general.rs).

use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Layout, Result, Shape, Tensor, bail};
use half::bf16;

use super::general;
use super::hopper::{self, Finish};
use super::hopper_weights::{self, Form};
use super::op::Conv2d;
use super::thin::Thin;
use super::weight_hopper;
use crate::ops::channel_norm::left;
use crate::ops::column_sums::column_sums;
use crate::ops::cuda::{Gpu, Output, View};
use crate::ops::tape::{input_has_passed_slope, slope_of_input};

pub(super) type Input<'a> = (&'a CudaStorage, &'a Layout);

pub(super) fn forward(
    op: &Conv2d,
    x: Input,
    weight: Input,
    bias: Option<Input>,
) -> Result<(CudaStorage, Shape)> {
    let (maps, ..) = x.1.shape().dims4()?;
    let gpu = Gpu::of(x.0.device())?;
    left::leave(None);
    let weight = View::<f32>::stored(weight.0, weight.1)?;
    let bias = bias.map(|(b, layout)| View::<f32>::stored(b, layout));
    let bias = bias.transpose()?;
    let y = match x.0.dtype() {
        DType::F32 => {
            let x = View::<f32>::stored(x.0, x.1)?;
            general::forward(&gpu, op, maps, x, weight, bias)?.storage()
        }
        DType::BF16 => {
            let x = View::<bf16>::stored(x.0, x.1)?;
            forward_bf16(&gpu, op, maps, x, weight, bias)?.storage()
        }
        other => bail!("conv2d: {other:?} has no kernels"),
    };
    let (height, width) = op.window.output;
    Ok((y, (maps, height, width, op.channels.1).into()))
}

/// Whether Hopper's kernels take a convolution forward: see [`hopper`].
pub(super) fn hopper_serves(gpu: &Gpu, op: &Conv2d, maps: usize) -> bool {
    let w = &op.window;
    let channels = |c: usize| c >= 32 && c.is_multiple_of(8);
    let positions = |(height, width): (usize, usize)| maps * height * width <= i32::MAX as usize;
    gpu.is_hopper()
        && channels(op.channels.0)
        && channels(op.channels.1)
        && w.stride <= 2
        && w.kernel.0.max(w.kernel.1) <= 7
        && w.padding.top.max(w.padding.left) < 7
        && positions(w.input)
        && positions(w.output)
}

fn forward_bf16(
    gpu: &Gpu,
    op: &Conv2d,
    maps: usize,
    x: View<bf16>,
    weight: View<f32>,
    bias: Option<View<f32>>,
) -> Result<Output<bf16>> {
    let (height, width) = op.window.output;
    let mut y = Output::<bf16>::new(gpu.device(), maps * height * width * op.channels.1)?;
    if let Some(thin) = Thin::new(op, maps) {
        match thin.widens() {
            true => thin.spread(gpu, x, weight, bias, 1.0, y.view_mut())?,
            false => thin.gather(gpu, x, weight, bias, y.view_mut())?,
        }
        return Ok(y);
    }
    if hopper_weights::serves(gpu, op.channels) {
        let packed = hopper_weights::copy(gpu, op, weight, Form::Packed)?;
        let finish = Finish {
            bias,
            tiles: true,
            ..Finish::default()
        };
        if hopper::forward(gpu, op, maps, x, View::of(&packed)?, finish, y.view_mut())? {
            return Ok(y);
        }
    }
    general::forward(gpu, op, maps, x, weight, bias)
}

/// Gradients of x, the weight and the bias, each where the graph tracks it.
pub(super) fn backward(
    op: &Conv2d,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    grad: &Tensor,
) -> Result<[Option<Tensor>; 3]> {
    let gpu = Gpu::of(grad.device().as_cuda_device()?)?;
    let dx = match x.track_op() {
        true => Some(input_gradient(&gpu, op, x, weight, grad)?),
        false => None,
    };
    let dw = match weight.track_op() {
        true => Some(weight_grad(op, x, grad)?),
        false => None,
    };
    let db = match bias.filter(|bias| bias.track_op()) {
        Some(_) => Some(column_sums(&gpu, grad)?),
        None => None,
    };
    Ok([dx, dw, db])
}

fn input_gradient(
    gpu: &Gpu,
    op: &Conv2d,
    x: &Tensor,
    weight: &Tensor,
    grad: &Tensor,
) -> Result<Tensor> {
    let (maps, shape) = (x.dim(0)?, x.shape().clone());
    let weight = View::<f32>::of(weight)?;
    match x.dtype() {
        DType::F32 => {
            let grad = View::<f32>::of(grad)?;
            Ok(general::input_gradient(gpu, op, maps, weight, grad)?.tensor(shape))
        }
        DType::BF16 => {
            let grad = View::<bf16>::of(grad)?;
            let x = View::<bf16>::of(x)?;
            Ok(input_gradient_bf16(gpu, op, maps, x, weight, grad)?.tensor(shape))
        }
        other => bail!("conv2d: {other:?} has no kernels"),
    }
}

fn input_gradient_bf16(
    gpu: &Gpu,
    op: &Conv2d,
    maps: usize,
    x: View<bf16>,
    weight: View<f32>,
    grad: View<bf16>,
) -> Result<Output<bf16>> {
    let (height, width) = op.window.input;
    let mut dx = Output::<bf16>::new(gpu.device(), maps * height * width * op.channels.0)?;
    if let Some(thin) = Thin::new(op, maps) {
        match thin.widens() {
            true => thin.gather(gpu, grad, weight, None, dx.view_mut())?,
            false => thin.spread(gpu, grad, weight, None, 1.0, dx.view_mut())?,
        }
        return Ok(dx);
    }
    if hopper_weights::serves(gpu, op.channels) {
        let packed = hopper_weights::copy(gpu, op, weight, Form::Packed)?;
        let packed = View::of(&packed)?;
        // The gradient passes the ReLU that made x on its way out.
        let slope = slope_of_input();
        let finish = Finish {
            gate: slope.map(|slope| (x, slope)),
            ..Finish::default()
        };
        if hopper::input_gradient(gpu, op, maps, grad, packed, finish, dx.view_mut())? {
            if slope.is_some() {
                input_has_passed_slope();
            }
            return Ok(dx);
        }
    }
    general::input_gradient(gpu, op, maps, weight, grad)
}

/// dL/dw f32 [O,I,kh,kw].
pub(super) fn weight_grad(op: &Conv2d, x: &Tensor, grad: &Tensor) -> Result<Tensor> {
    let gpu = Gpu::of(grad.device().as_cuda_device()?)?;
    let maps = x.dim(0)?;
    let dw = match x.dtype() {
        DType::F32 => {
            let (x, grad) = (View::<f32>::of(x)?, View::<f32>::of(grad)?);
            general::weight_gradient(&gpu, op, maps, x, grad)?
        }
        DType::BF16 => {
            let (x, grad) = (View::<bf16>::of(x)?, View::<bf16>::of(grad)?);
            weight_gradient_bf16(&gpu, op, maps, x, grad)?
        }
        other => bail!("conv2d: {other:?} has no kernels"),
    };
    let ((i, o), (kh, kw)) = (op.channels, op.window.kernel);
    Ok(dw.tensor((o, i, kh, kw)))
}

fn weight_gradient_bf16(
    gpu: &Gpu,
    op: &Conv2d,
    maps: usize,
    x: View<bf16>,
    grad: View<bf16>,
) -> Result<Output<f32>> {
    let len = op.channels.0 * op.channels.1 * op.taps();
    if let Some(thin) = Thin::new(op, maps) {
        let mut dw = Output::<f32>::new(gpu.device(), len)?;
        let to = dw.view_mut();
        match thin.widens() {
            true => thin.weight_gradient(gpu, grad, x, to)?,
            false => thin.weight_gradient(gpu, x, grad, to)?,
        }
        return Ok(dw);
    }
    if weight_hopper::serves(gpu, op) {
        let mut dw = Output::<f32>::new(gpu.device(), len)?;
        weight_hopper::weight_gradient(gpu, op, maps, x, grad, dw.view_mut())?;
        return Ok(dw);
    }
    general::weight_gradient(gpu, op, maps, x, grad)
}
