//! The network's layers: convolutions with folded BatchNorm, pools, forks; maps [B,H,W,C] in and
//! out.

use candle_core::{DType, Device, Result, Tensor};

use crate::ops::{self, FrozenConv2d, Padding};
use crate::store::{Init, Scope};

pub(super) const BATCH_NORM_EPS: f64 = 1e-3;

pub(super) enum Layer {
    /// With its BatchNorm folded in, followed by ReLU.
    Convolution(FrozenConv2d),
    MaxPool {
        stride: usize,
        padding: usize,
    },
    /// A 1×1 convolution of averages over 3×3, stride 1, same size.
    OfAverage(FrozenConv2d),
    /// Several layers of the same input, concatenated along the channels.
    Fork(Vec<Layer>),
}

/// A convolution's padding: zeros, so that every position has a window, or none.
#[derive(Clone, Copy)]
pub(super) enum Windows {
    Same,
    Valid { stride: usize },
}

/// Creates layers from the scope of their block.
pub(super) struct Builder<'a> {
    pub scope: &'a Scope,
    /// Every width is divided by it: 1, except in tests.
    pub divisor: usize,
}

impl Builder<'_> {
    /// `name`: (kh, kw), from `input` to `output` channels.
    pub fn convolution(
        &self,
        name: &str,
        kernel: (usize, usize),
        io: (usize, usize),
        windows: Windows,
    ) -> Result<Layer> {
        let convolution = self.folded(name, kernel, io, windows)?;
        Ok(Layer::Convolution(convolution))
    }

    /// A 1×1 convolution of averages.
    pub fn of_average(&self, name: &str, io: (usize, usize)) -> Result<Layer> {
        let convolution = self.folded(name, (1, 1), io, Windows::Same)?;
        Ok(Layer::OfAverage(convolution))
    }

    fn folded(
        &self,
        name: &str,
        kernel: (usize, usize),
        (input, output): (usize, usize),
        windows: Windows,
    ) -> Result<FrozenConv2d> {
        let (input, output) = (self.narrow(input), output / self.divisor);
        let scope = self.scope.push(name);
        let get = |scope: &Scope, name: &str, shape: &[usize]| {
            let tensor = scope.get(name, shape, Init::Zeros)?;
            tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)
        };
        let (kh, kw) = kernel;
        let weight = get(&scope.push("conv"), "weight", &[output, input, kh, kw])?;
        let norm = scope.push("bn");
        let of_norm = |name: &str| get(&norm, name, &[output]);
        // y = γ·(conv − mean)/√(var + eps) + β
        let deviation = (of_norm("running_var")? + BATCH_NORM_EPS)?.sqrt()?;
        let scale = (of_norm("weight")? / deviation)?;
        let bias = (of_norm("bias")? - (of_norm("running_mean")? * &scale)?)?;
        let weight = weight.broadcast_mul(&scale.reshape((output, 1, 1, 1))?)?;
        let device = self.scope.device();
        let (stride, padding) = match windows {
            Windows::Same => (1, Padding::new(kh / 2, kh / 2, kw / 2, kw / 2)),
            Windows::Valid { stride } => (stride, Padding::same(0)),
        };
        let weight = weight.to_dtype(DType::F32)?.to_device(device)?;
        let bias = bias.to_dtype(DType::F32)?.to_device(device)?;
        FrozenConv2d::new(&weight, &bias, stride, padding)
    }

    pub fn same(&self, name: &str, kernel: (usize, usize), io: (usize, usize)) -> Result<Layer> {
        self.convolution(name, kernel, io, Windows::Same)
    }

    pub fn halving(&self, name: &str, io: (usize, usize)) -> Result<Layer> {
        self.convolution(name, (3, 3), io, Windows::Valid { stride: 2 })
    }

    /// Input channels; the image's three channels stay.
    fn narrow(&self, width: usize) -> usize {
        if width == 3 { 3 } else { width / self.divisor }
    }
}

pub(super) const HALVING_POOL: Layer = Layer::MaxPool {
    stride: 2,
    padding: 0,
};

impl Layer {
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Layer::Convolution(convolution) => convolution.relu(x),
            Layer::MaxPool { stride, padding } => {
                ops::max_pool2d(x, 3, *stride, Padding::same(*padding))
            }
            Layer::OfAverage(convolution) => convolution.relu_of_average(x, 3, Padding::same(1)),
            Layer::Fork(_) => ops::concatenate(&self.outputs(x)?),
        }
    }

    /// What lies side by side in the result.
    pub fn outputs(&self, x: &Tensor) -> Result<Vec<Tensor>> {
        match self {
            Layer::Fork(layers) => layers.iter().map(|layer| layer.forward(x)).collect(),
            layer => Ok(vec![layer.forward(x)?]),
        }
    }
}
