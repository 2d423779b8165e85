//! Convolutions with a residual map, a ReLU or an upsampling in their own pass, by Hopper's kernels
//! (hopper.rs), bf16.

use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Result, Shape, Tensor, bail};
use half::bf16;

use super::cuda::{Input, hopper_serves};
use super::hopper::{self, Finish};
use super::hopper_upsampled::{self, FOLDED};
use super::hopper_weights::{self, Form};
use super::op::{Conv2d, Fused, With};
use super::thin::Thin;
use super::{Padding, weight_hopper};
use crate::ops::activation::cuda::{Function, backward as activation_gradient};
use crate::ops::channel_norm::left;
use crate::ops::column_sums::column_sums;
use crate::ops::cuda::{Gpu, Output, View};
use crate::ops::tape::has_passed_slope;
use crate::ops::window::Window;

/// Whether a kernel takes this convolution with what is fused into it.
pub(super) fn serves(op: &Conv2d, x: &Tensor, with: &With) -> Result<bool> {
    let gpu = Gpu::of(x.device().as_cuda_device()?)?;
    let (maps, ..) = x.dims4()?;
    if x.dtype() != DType::BF16 {
        return Ok(false);
    }
    // The thin kernels have no residual, and a ReLU where they widen.
    if let Some(thin) = Thin::new(op, maps) {
        return Ok(matches!(with, With::Slope(_)) && thin.widens());
    }
    let w = &op.window;
    let fits = match with {
        With::Residual(residual) => {
            let expected = [maps, w.output.0, w.output.1, op.channels.1];
            if residual.dims() != expected {
                bail!(
                    "conv2d_add: the map to add to is {:?}, the convolution's {expected:?}",
                    residual.dims()
                );
            }
            residual.dtype() == DType::BF16
        }
        With::Slope(_) => true,
        With::Upsampling => w.kernel == (3, 3) && w.stride == 1 && w.padding == Padding::same(1),
    };
    Ok(fits && hopper_serves(&gpu, op, maps))
}

pub(super) fn forward(
    fused: &Fused,
    x: Input,
    weight: Input,
    bias: Input,
) -> Result<(CudaStorage, Shape)> {
    let (op, (maps, ..)) = (&fused.op, x.1.shape().dims4()?);
    let gpu = Gpu::of(x.0.device())?;
    left::leave(None);
    let (height, width) = op.window.output;
    let shape = Shape::from((maps, height, width, op.channels.1));
    let (x, weight) = (View::stored(x.0, x.1)?, View::stored(weight.0, weight.1)?);
    let bias = Some(View::stored(bias.0, bias.1)?);
    let mut y = Output::<bf16>::new(gpu.device(), shape.elem_count())?;
    let finish = Finish {
        bias,
        tiles: !matches!(fused.with, With::Slope(_)), // no norm follows an activation
        ..Finish::default()
    };
    let done = match &fused.with {
        With::Residual(residual) => {
            op.count(maps);
            let finish = Finish {
                residual: Some(View::of(residual)?),
                ..finish
            };
            let packed = hopper_weights::copy(&gpu, op, weight, Form::Packed)?;
            hopper::forward(&gpu, op, maps, x, View::of(&packed)?, finish, y.view_mut())?
        }
        With::Slope(slope) => {
            op.count(maps);
            if let Some(thin) = Thin::new(op, maps) {
                thin.spread(&gpu, x, weight, bias, *slope, y.view_mut())?;
                true
            } else {
                let finish = Finish {
                    slope: Some(*slope),
                    ..finish
                };
                let packed = hopper_weights::copy(&gpu, op, weight, Form::Packed)?;
                hopper::forward(&gpu, op, maps, x, View::of(&packed)?, finish, y.view_mut())?
            }
        }
        With::Upsampling => {
            op.count_folded(maps);
            let folded = hopper_weights::copy(&gpu, op, weight, Form::Folded)?;
            let size = (maps, height / 2, width / 2);
            let folded = View::of(&folded)?;
            hopper_upsampled::upsampled(&gpu, size, op.channels, x, folded, finish, y.view_mut())?
        }
    };
    if !done {
        bail!("conv2d: no kernel takes {op:?}");
    }
    Ok((y.storage(), shape))
}

/// Gradients of x, the weight and the bias, each where the graph tracks it.
pub(super) fn backward(
    fused: &Fused,
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    y: &Tensor,
    grad: &Tensor,
) -> Result<[Option<Tensor>; 3]> {
    let op = &fused.op;
    match &fused.with {
        With::Residual(_) => op.gradients(x, weight, Some(bias), grad),
        With::Slope(_) if has_passed_slope() => op.gradients(x, weight, Some(bias), grad),
        // Where y is above zero so was what the ReLU took.
        With::Slope(slope) => {
            let relu = Function::LeakyRelu { slope: *slope };
            match activation_gradient(relu, y, grad)? {
                Some(grad) => op.gradients(x, weight, Some(bias), &grad),
                None => Ok([None, None, None]),
            }
        }
        With::Upsampling => upsampled_gradients(op, x, weight, bias, grad),
    }
}

fn upsampled_gradients(
    op: &Conv2d,
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    grad: &Tensor,
) -> Result<[Option<Tensor>; 3]> {
    let gpu = Gpu::of(grad.device().as_cuda_device()?)?;
    let (maps, height, width, _) = x.dims4()?;
    let dx = match x.track_op() {
        true => {
            op.count_folded(maps);
            let folded = hopper_weights::copy(&gpu, op, View::of(weight)?, Form::Folded)?;
            let mut dx = Output::<bf16>::new(gpu.device(), x.elem_count())?;
            let size = (maps, height, width);
            let (grad, folded) = (View::of(grad)?, View::of(&folded)?);
            let to = dx.view_mut();
            if !hopper_upsampled::upsampled_gradient(&gpu, size, op.channels, grad, folded, to)? {
                bail!("conv2d: no kernel takes the gradient of {op:?} behind an upsampling");
            }
            Some(dx.tensor(x.shape()))
        }
        false => None,
    };
    let dw = match weight.track_op() {
        true => {
            op.count_folded(maps);
            Some(upsampled_weight_gradient(&gpu, op, x, grad)?)
        }
        false => None,
    };
    let db = match bias.track_op() {
        true => Some(column_sums(&gpu, grad)?),
        false => None,
    };
    Ok([dx, dw, db])
}

/// dL/dw [O,I,3,3] behind an upsampling, over the small map: the folded weight's gradient is that
/// of a 4×4 convolution of stride 2 from `grad` to x, whose taps then are summed back into those of
/// the weight. 4/9 of the FLOP, and no map is doubled.
fn upsampled_weight_gradient(gpu: &Gpu, op: &Conv2d, x: &Tensor, grad: &Tensor) -> Result<Tensor> {
    let (maps, (i, o)) = (x.dim(0)?, op.channels);
    let padding = Padding::same(1);
    let back = Conv2d {
        window: Window::new("conv2d", op.window.output, (4, 4), 2, padding)?,
        channels: (o, i),
        packed: None,
    };
    let mut folded = Output::<f32>::new(gpu.device(), i * o * FOLDED)?;
    let (x, grad, to) = (View::of(x)?, View::of(grad)?, folded.view_mut());
    weight_hopper::weight_gradient(gpu, &back, maps, grad, x, to)?;
    let mut dw = Output::<f32>::new(gpu.device(), i * o * 9)?;
    hopper_weights::unfold_gradient(gpu, op.channels, folded.view(), dw.view_mut())?;
    Ok(dw.tensor((o, i, 3, 3)))
}
