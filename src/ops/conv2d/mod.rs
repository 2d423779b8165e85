//! Convolution of maps: y[b,i,j,o] = bias[o] + Σ_{c,p,q} x[b, s·i+p−top, s·j+q−left, c] ·
//! w[o,c,p,q].
//!
//! x [B,H,W,I], w [O,I,kh,kw] (PyTorch's shape), bias [O] → y [B,H',W',O], H' = ⌊(H + top + bottom
//! − kh)/s⌋ + 1. Gradients: dx is the transposed convolution of dy, dw the correlation of x with
//! dy, dbias the sum of dy over positions; each only if the graph tracks the input.

#[cfg(feature = "cuda")]
pub mod check;
#[cfg(feature = "cuda")]
mod check_cuts;
#[cfg(feature = "cuda")]
pub mod check_f16;
#[cfg(feature = "cuda")]
mod check_norms;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod frozen;
#[cfg(feature = "cuda")]
mod frozen_f16;
#[cfg(feature = "cuda")]
mod fused;
mod gather;
#[cfg(feature = "cuda")]
mod general;
mod held;
#[cfg(feature = "cuda")]
mod hopper;
#[cfg(feature = "cuda")]
mod hopper_cut;
#[cfg(feature = "cuda")]
mod hopper_upsampled;
#[cfg(feature = "cuda")]
mod hopper_weights;
mod op;
mod pack;
mod reference;
#[cfg(feature = "cuda")]
mod thin;
#[cfg(feature = "cuda")]
mod weight_hopper;
#[cfg(any(test, feature = "cuda"))]
#[cfg_attr(
    not(feature = "cuda"),
    allow(dead_code, reason = "the tests look at plans that only a GPU runs")
)]
mod weight_plan;
mod winograd;

#[cfg(test)]
mod tests;

use candle_core::{Result, Tensor, bail};

#[cfg(feature = "cuda")]
use super::channel_norm::left;
use super::window::{Padding, Window};
use super::{Packed, add, leaky_relu, slices, tape, upsample_nearest2x};
pub use frozen::FrozenConv2d;
pub use held::HeldWeights;
#[cfg(feature = "cuda")]
pub(in crate::ops) use hopper_weights::Form;
use op::Conv2d;

/// Convolution of `x` [B,H,W,I] with `weight` [O,I,kh,kw] and `bias` [O]: [B,H',W',O].
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    stride: usize,
    padding: Padding,
) -> Result<Tensor> {
    conv2d_packed(x, weight, bias, stride, padding, None)
}

/// [`conv2d`] with a packed copy of this weight, which must not change afterwards.
pub fn conv2d_packed(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    stride: usize,
    padding: Padding,
    packed: Option<&Packed>,
) -> Result<Tensor> {
    let (kernel, channels) = match *weight.dims() {
        [_, i, kh, kw] => ((kh, kw), i),
        ref other => bail!("conv2d: the weight must be [O,I,kh,kw], found {other:?}"),
    };
    let window = window("conv2d", x, Some(channels), kernel, stride, padding)?;
    check_bias("conv2d", bias, weight.dim(0)?)?;
    check_elements("conv2d", &[x, weight])?;
    if !slices::meet_kernels(&[x], &[weight]) {
        return by_reference(x, weight, bias, window);
    }
    let op = Conv2d {
        window,
        channels: (channels, weight.dim(0)?),
        packed: copies(x, packed),
    };
    let y = match bias {
        Some(bias) => tape::apply3(x, weight, bias, op)?,
        None => tape::apply2(x, weight, op)?,
    };
    #[cfg(feature = "cuda")]
    left::belong_to(&y);
    Ok(y)
}

/// Where a convolution of `x` keeps copies of its weight: for good if it is frozen; on a GPU
/// otherwise from the forward to the backward pass.
fn copies(x: &Tensor, packed: Option<&Packed>) -> Option<Packed> {
    match packed {
        None if x.device().is_cuda() => Some(Packed::default()),
        packed => packed.cloned(),
    }
}

/// `residual` [B,H',W',O] + [`conv2d_packed`]; on a Hopper GPU in one pass.
pub fn conv2d_add(
    residual: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    stride: usize,
    padding: Padding,
    packed: Option<&Packed>,
) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(y) = fuse(x, weight, bias, stride, padding, packed, || {
        op::With::Residual(residual.clone())
    })? {
        return Ok(y);
    }
    let y = conv2d_packed(x, weight, bias, stride, padding, packed)?;
    add(residual, &y)
}

/// [`leaky_relu`](super::leaky_relu) of [`conv2d_packed`] (`slope` 0: ReLU); on a Hopper GPU in one
/// pass.
pub fn conv2d_relu(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    stride: usize,
    padding: Padding,
    slope: f64,
    packed: Option<&Packed>,
) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(y) = fuse(x, weight, bias, stride, padding, packed, || {
        op::With::Slope(slope as f32)
    })? {
        return Ok(y);
    }
    let y = conv2d_packed(x, weight, bias, stride, padding, packed)?;
    leaky_relu(&y, slope)
}

/// A 3×3 [`conv2d_packed`] with padding 1 of [`upsample_nearest2x`] of `x` [B,H,W,I]: [B,2H,2W,O].
/// On a Hopper GPU the repetition is folded into the weight: four convolutions with 2×2 kernels,
/// 4/9 of the FLOP, forward and for each gradient.
pub fn upsampled_conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    packed: Option<&Packed>,
) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(y) = fuse(x, weight, bias, 1, Padding::same(1), packed, || {
        op::With::Upsampling
    })? {
        return Ok(y);
    }
    let x = upsample_nearest2x(x)?;
    conv2d_packed(&x, weight, bias, 1, Padding::same(1), packed)
}

/// A convolution with a fused operation, if a kernel supports it.
#[cfg(feature = "cuda")]
fn fuse(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    stride: usize,
    padding: Padding,
    packed: Option<&Packed>,
    with: impl FnOnce() -> op::With,
) -> Result<Option<Tensor>> {
    let (Some(bias), &[o, i, kh, kw]) = (bias, weight.dims()) else {
        return Ok(None);
    };
    if !x.device().is_cuda() || !slices::meet_kernels(&[x], &[weight, bias]) {
        return Ok(None);
    }
    let with = with();
    let mut window = window("conv2d", x, Some(i), (kh, kw), stride, padding)?;
    if matches!(with, op::With::Upsampling) {
        let doubled = (2 * window.input.0, 2 * window.input.1);
        window = Window::new("conv2d", doubled, (kh, kw), stride, padding)?;
    }
    check_bias("conv2d", Some(bias), o)?;
    let op = Conv2d {
        window,
        channels: (i, o),
        packed: copies(x, packed),
    };
    if !fused::serves(&op, x, &with)? {
        return Ok(None);
    }
    let y = op::Fused { op, with }.apply(x, weight, bias)?;
    left::belong_to(&y);
    Ok(Some(y))
}

/// The gradient of [`conv2d`] for its weight only, [O,I,kh,kw], from `grad` = dL/dy [B,H',W',O];
/// not differentiable.
pub fn conv2d_weight_grad(
    x: &Tensor,
    grad: &Tensor,
    kernel: (usize, usize),
    stride: usize,
    padding: Padding,
) -> Result<Tensor> {
    let window = window("conv2d_weight_grad", x, None, kernel, stride, padding)?;
    let expected = (x.dim(0)?, window.output.0, window.output.1);
    match *grad.dims() {
        [b, h, w, _] if (b, h, w) == expected => {}
        ref other => bail!(
            "conv2d_weight_grad: the gradient must be [B,H',W',O] with (B,H',W') = {expected:?}, found {other:?}"
        ),
    }
    check_elements("conv2d_weight_grad", &[x, grad])?;
    let op = Conv2d {
        window,
        channels: (x.dim(3)?, grad.dim(3)?),
        packed: None,
    };
    #[cfg(feature = "cuda")]
    if slices::have_kernels(&[x, grad]) && x.device().is_cuda() {
        return cuda::weight_grad(&op, &x.contiguous()?, &grad.contiguous()?);
    }
    if !slices::are_f32_on_cpu(&[x, grad]) {
        return reference::weight_grad(&x.detach(), &grad.detach(), &window);
    }
    let (dw, _) = slices::read([x, grad], |[x, grad]| op.weight_grad(x, grad))?;
    let (i, o) = op.channels;
    Tensor::from_vec(dw, (o, i, kernel.0, kernel.1), x.device())
}

/// In candle operations, for dtypes without kernels.
fn by_reference(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    window: Window,
) -> Result<Tensor> {
    match bias {
        Some(bias) => tape::plain([x, weight, bias], move |[x, weight, bias]| {
            reference::conv2d(x, weight, Some(bias), &window)
        }),
        None => tape::plain([x, weight], move |[x, weight]| {
            reference::conv2d(x, weight, None, &window)
        }),
    }
}

fn window(
    op: &str,
    x: &Tensor,
    channels: Option<usize>,
    kernel: (usize, usize),
    stride: usize,
    padding: Padding,
) -> Result<Window> {
    match *x.dims() {
        [_, h, w, c] => {
            if let Some(expected) = channels
                && c != expected
            {
                bail!(
                    "{op}: the weight takes {expected} channels, the map [B,H,W,C] = {:?} has {c}",
                    x.dims()
                );
            }
            Window::new(op, (h, w), kernel, stride, padding)
        }
        ref other => bail!("{op}: the map must be [B,H,W,C], found {other:?}"),
    }
}

/// Refuses tensors without elements.
pub(super) fn check_elements(op: &str, tensors: &[&Tensor]) -> Result<()> {
    match tensors.iter().find(|t| t.elem_count() == 0) {
        Some(empty) => bail!("{op}: a tensor {:?} has no elements", empty.dims()),
        None => Ok(()),
    }
}

/// A bias must be [O].
pub(super) fn check_bias(op: &str, bias: Option<&Tensor>, outputs: usize) -> Result<()> {
    match bias {
        Some(bias) if bias.dims() != [outputs] => bail!(
            "{op}: the bias must be [{outputs}], one per output, found {:?}",
            bias.dims()
        ),
        _ => Ok(()),
    }
}
