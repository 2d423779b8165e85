//! A convolution with frozen weights, followed by a ReLU, for networks without training: y = max(0,
//! conv(x) + bias).
//!
//! The weights are packed once instead of in every call, and the ReLU is applied while a block of
//! the result is in cache. x [B,H,W,I] → y [B,H',W',O] as in [`conv2d`](super::conv2d); not
//! differentiable.

use candle_core::{Result, Tensor, bail};

use super::op::Conv2d;
use super::{check_bias, slices, window};
use crate::ops::product::Panels;
#[cfg(feature = "cuda")]
use crate::ops::relu_of_average;
use crate::ops::{Padding, activation, avg_pool2d, conv2d};

pub struct FrozenConv2d {
    /// [O,I,kh,kw]
    weight: Tensor,
    /// [O]
    bias: Tensor,
    stride: usize,
    padding: Padding,
    /// The weight in the CPU version's layout.
    panels: Option<Panels>,
    #[cfg(feature = "cuda")]
    f16: super::frozen_f16::Packed,
}

impl FrozenConv2d {
    /// Errors: a weight that is not [O,I,kh,kw], a bias that is not [O].
    pub fn new(weight: &Tensor, bias: &Tensor, stride: usize, padding: Padding) -> Result<Self> {
        let (o, i, kh, kw) = weight.dims4()?;
        check_bias("conv2d", Some(bias), o)?;
        let panels = match slices::are_f32_on_cpu(&[weight]) {
            true => Some(slices::read([weight], |[w]| {
                Panels::of_outputs(w, o, i, kh * kw)
            })?),
            false => None,
        };
        Ok(Self {
            weight: weight.detach(),
            bias: bias.detach(),
            stride,
            padding,
            panels,
            #[cfg(feature = "cuda")]
            f16: Default::default(),
        })
    }

    /// max(0, conv(x) + bias), in x's dtype: f32, or on a Hopper GPU f16.
    pub fn relu(&self, x: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() && x.dtype() == candle_core::DType::F16 {
            let op = self.op(x)?;
            let x = x.contiguous()?;
            return self
                .f16
                .forward(&op, &x, &self.weight, &self.bias, Some(0.0));
        }
        let fast = slices::are_f32_on_cpu(&[x, &self.bias]);
        let Some(panels) = self.panels.as_ref().filter(|_| fast) else {
            let y = conv2d(x, &self.weight, Some(&self.bias), self.stride, self.padding)?;
            return activation::relu(&y);
        };
        let op = self.op(x)?;
        op.count(x.dim(0)?);
        let y = slices::read([x, &self.bias], |[x, bias]| {
            op.forward_relu(x, panels, bias)
        })?;
        let (height, width) = op.window.output;
        Tensor::from_vec(y, (x.dim(0)?, height, width, op.channels.1), x.device())
    }

    /// max(0, conv(avg) + bias), avg the mean of every `kernel`×`kernel` window of stride 1 as in
    /// [`avg_pool2d`]; of a 1×1 convolution of stride 1.
    ///
    /// In f16 the convolution comes first, which has fewer channels for the mean to read: both are
    /// linear, and the mean leaves the bias as it is.
    pub fn relu_of_average(&self, x: &Tensor, kernel: usize, padding: Padding) -> Result<Tensor> {
        let (_, _, kh, kw) = self.weight.dims4()?;
        if (kh, kw) != (1, 1) || self.stride != 1 || self.padding != Padding::same(0) {
            bail!("conv2d of averages: expected 1×1 of stride 1, found {kh}×{kw}");
        }
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() && x.dtype() == candle_core::DType::F16 {
            let op = self.op(x)?;
            let x = x.contiguous()?;
            let y = self.f16.forward(&op, &x, &self.weight, &self.bias, None)?;
            return relu_of_average(&y, kernel, padding);
        }
        self.relu(&avg_pool2d(x, kernel, 1, padding)?)
    }

    fn op(&self, x: &Tensor) -> Result<Conv2d> {
        let (o, i, kh, kw) = self.weight.dims4()?;
        let window = window("conv2d", x, Some(i), (kh, kw), self.stride, self.padding)?;
        Ok(Conv2d {
            window,
            channels: (i, o),
            packed: None,
        })
    }
}
