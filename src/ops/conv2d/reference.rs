//! The reference: gather the kh·kw values of every window into a row, then one matmul.

use candle_core::{Result, Tensor};

use super::Window;
use crate::ops::linear::reference::linear;

pub(super) fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    window: &Window,
) -> Result<Tensor> {
    let (o, i, kh, kw) = weight.dims4()?;
    let rows = Tensor::cat(&window.taps(x, 0.0)?, 3)?; // [B,H',W',kh·kw·I]
    let weight = weight.permute((0, 2, 3, 1))?.contiguous()?; // [O,kh,kw,I]
    linear(&rows, &weight.reshape((o, kh * kw * i))?, bias)
}

pub(super) fn weight_grad(x: &Tensor, grad: &Tensor, window: &Window) -> Result<Tensor> {
    let (kh, kw) = window.kernel;
    let (i, o) = (x.dim(3)?, grad.dim(3)?);
    let rows = Tensor::cat(&window.taps(x, 0.0)?, 3)?.reshape(((), kh * kw * i))?;
    let grad = grad.contiguous()?.reshape(((), o))?;
    let product = grad.t()?.contiguous()?.matmul(&rows)?; // [O,kh·kw·I]
    let product = product.reshape((o, kh, kw, i))?;
    product.permute((0, 3, 1, 2))?.contiguous()
}
