//! The PatchGAN discriminator (Isola et al. 2017, as in taming-transformers): images [B,H,W,3] →
//! logits [B,H',W',1].
//!
//! Convolutions 4×4, `layers` of them strided, BatchNorm with the batch's statistics,
//! LeakyReLU(0.2). The running statistics are kept only for compatibility with PyTorch; training
//! never reads them.

use candle_core::{DType, Result, Tensor, Var};

use super::layers::{Conv2d, default_init};
use crate::ops::{self, Activation, Padding, Running, arrange};
use crate::store::{Init, Scope};

/// Filters of the first layer.
pub const WIDTH: usize = 64;

const LEAKY: f64 = 0.2;

pub struct Discriminator {
    conv_in: Conv2d,
    blocks: Vec<(Conv2d, BatchNorm)>,
    conv_out: Conv2d,
    /// The dtype of the activations.
    compute: DType,
}

/// Mean and unbiased variance [C] of the batch for each BatchNorm, in order; averaged over
/// processes before they are kept.
pub type Statistics = Vec<(Tensor, Tensor)>;

impl Discriminator {
    /// `buffers` holds the running statistics, which the optimizer does not update; both scopes
    /// have the same prefix.
    pub fn new(width: usize, layers: usize, scope: &Scope, buffers: &Scope) -> Result<Self> {
        let (scope, buffers) = (scope.push("main"), buffers.push("main"));
        let mut blocks = Vec::new();
        let mut c = width;
        for i in 1..=layers {
            let (input, at) = (c, 3 * i - 1);
            c = (width << i).min(8 * width);
            let stride = if i < layers { 2 } else { 1 };
            blocks.push((
                conv(input, c, stride, false, &scope.push(at))?,
                BatchNorm::new(c, &scope.push(at + 1), &buffers.push(at + 1))?,
            ));
        }
        Ok(Self {
            conv_in: conv(3, width, 2, true, &scope.push(0))?,
            blocks,
            conv_out: conv(c, 1, 1, true, &scope.push(3 * layers + 2))?,
            compute: DType::F32,
        })
    }

    /// The same with activations of `compute`, f32 or on a GPU bf16; weights, images and logits
    /// stay f32.
    pub fn computing(self, compute: DType) -> Self {
        Self { compute, ..self }
    }

    /// Images [B,H,W,3] → logits [B,H',W',1], and each BatchNorm's statistics of this batch.
    pub fn forward(&self, images: &Tensor) -> Result<(Tensor, Statistics)> {
        let pixels = arrange::cast(images, self.compute)?;
        let mut h = self.conv_in.forward_relu(&pixels, LEAKY)?;
        let mut statistics = Vec::new();
        for (conv, norm) in &self.blocks {
            let (y, mean, variance) = norm.forward(&conv.forward(&h)?)?;
            statistics.push((mean, variance));
            h = y;
        }
        let logits = arrange::cast(&self.conv_out.forward(&h)?, DType::F32)?;
        Ok((logits, statistics))
    }

    /// Updates the running statistics with momentum 0.1, as PyTorch does in every training forward
    /// pass.
    pub fn keep(&self, statistics: &Statistics) -> Result<()> {
        let norms = self.blocks.iter().map(|(_, norm)| norm).zip(statistics);
        let running: Vec<Running> = norms
            .flat_map(|(norm, (mean, variance))| norm.keep(mean, variance))
            .collect();
        ops::update_averages(&running)
    }
}

/// 4×4 with padding 1; weights N(0, 0.02).
fn conv(input: usize, output: usize, stride: usize, bias: bool, scope: &Scope) -> Result<Conv2d> {
    let normal = Init::Normal {
        mean: 0.0,
        std: 0.02,
    };
    Ok(Conv2d {
        weight: scope.get("weight", (output, input, 4, 4), normal)?,
        bias: match bias {
            true => Some(scope.get("bias", output, default_init(16 * input))?),
            false => None,
        },
        stride,
        padding: Padding::same(1),
        packed: scope.packed(),
    })
}

struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Var,
    running_var: Var,
    batches: Var,
}

impl BatchNorm {
    fn new(channels: usize, scope: &Scope, buffers: &Scope) -> Result<Self> {
        let normal = Init::Normal {
            mean: 1.0,
            std: 0.02,
        };
        let buffer =
            |name, shape: &[usize], init| Var::from_tensor(&buffers.get(name, shape, init)?);
        Ok(Self {
            weight: scope.get("weight", channels, normal)?,
            bias: scope.get("bias", channels, Init::Zeros)?,
            running_mean: buffer("running_mean", &[channels], Init::Zeros)?,
            running_var: buffer("running_var", &[channels], Init::Ones)?,
            batches: buffer("num_batches_tracked", &[], Init::Zeros)?,
        })
    }

    /// The normalized and rectified map; the batch's mean and unbiased variance.
    fn forward(&self, x: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
        let activation = Activation::LeakyRelu(LEAKY);
        let (y, mean, variance) = ops::batch_norm(x, &self.weight, &self.bias, 1e-5, activation)?;
        let n = (x.elem_count() / mean.elem_count()) as f64;
        Ok((y, mean, (variance * (n / (n - 1.0)))?))
    }

    fn keep<'a>(&'a self, mean: &'a Tensor, variance: &'a Tensor) -> [Running<'a>; 3] {
        let moving = |average, now| Running {
            average,
            now: Some(now),
            keep: 0.9,
            rate: 0.1,
        };
        let one_more = Running {
            average: &self.batches,
            now: None,
            keep: 1.0,
            rate: 1.0,
        };
        [
            moving(&self.running_mean, mean),
            moving(&self.running_var, variance),
            one_more,
        ]
    }
}
