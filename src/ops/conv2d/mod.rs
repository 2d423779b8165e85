//! Convolution of maps: y[b,i,j,o] = bias[o] + Σ_{c,p,q} x[b, s·i+p−top, s·j+q−left, c] · w[o,c,p,q].
//!
//! x [B,H,W,I], w [O,I,kh,kw] (PyTorch's shape), bias [O] → y [B,H',W',O], H' = ⌊(H + top + bottom − kh)/s⌋ + 1.
//! Gradients: dx is the transposed convolution of dy, dw the correlation of x with dy, dbias the sum of dy over
//! positions; each only where the graph tracks the input.

mod cpu;
mod frozen;
mod gather;
mod pack;
mod reference;

#[cfg(test)]
mod tests;

use candle_core::{Result, Tensor, bail};

use super::window::{Padding, Window};
use super::{Packed, slices, tape};
use cpu::Conv2d;
pub use frozen::FrozenConv2d;

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

/// [`conv2d`]; `packed` is this weight's, which must not change after.
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
    if !slices::are_f32_on_cpu(&[x, weight]) {
        return reference::conv2d(x, weight, bias, &window);
    }
    let op = Conv2d {
        window,
        channels: (channels, weight.dim(0)?),
        packed: packed.cloned(),
    };
    match bias {
        Some(bias) => tape::apply3(x, weight, bias, op),
        None => tape::apply2(x, weight, op),
    }
}

/// The gradient of [`conv2d`] for its weight alone, [O,I,kh,kw], from `grad` = dL/dy [B,H',W',O]: not differentiable.
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
    if !slices::are_f32_on_cpu(&[x, grad]) {
        return reference::weight_grad(&x.detach(), &grad.detach(), &window);
    }
    let channels = (x.dim(3)?, grad.dim(3)?);
    let op = Conv2d {
        window,
        channels,
        packed: None,
    };
    let (dw, _) = slices::read([x, grad], |[x, grad]| op.weight_grad(x, grad))?;
    Tensor::from_vec(dw, (channels.1, channels.0, kernel.0, kernel.1), x.device())
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

/// Refuses tensors without elements, whose rows have no size.
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
            "{op}: the bias must be [{outputs}], one an output, found {:?}",
            bias.dims()
        ),
        _ => Ok(()),
    }
}
