//! Layers with parameters: convolution, linear map, GroupNorm with SiLU; with PyTorch's names and
//! initialisation.

use candle_core::{Result, Tensor};

use crate::ops::{self, Activation, Normed, Packed, Padding};
use crate::store::{Init, Scope};

/// Convolution of a map [B,H,W,I] to [B,H',W',O]; weight [O,I,k,k].
pub struct Conv2d {
    pub weight: Tensor,
    pub bias: Option<Tensor>,
    pub stride: usize,
    pub padding: Padding,
    pub packed: Option<Packed>,
}

impl Conv2d {
    /// Odd kernel, stride 1: the map keeps its size.
    pub fn same(input: usize, output: usize, kernel: usize, scope: &Scope) -> Result<Self> {
        let init = default_init(input * kernel * kernel);
        Ok(Self {
            weight: scope.get("weight", (output, input, kernel, kernel), init)?,
            bias: Some(scope.get("bias", output, init)?),
            stride: 1,
            padding: Padding::same(kernel / 2),
            packed: scope.packed(),
        })
    }

    /// VQGAN's downsampling: 3×3, stride 2, padded on the right and at the bottom only.
    pub fn downsample(channels: usize, scope: &Scope) -> Result<Self> {
        Ok(Self {
            stride: 2,
            padding: Padding::new(0, 1, 0, 1),
            ..Self::same(channels, channels, 3, scope)?
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::conv2d_packed(
            x,
            &self.weight,
            self.bias.as_ref(),
            self.stride,
            self.padding,
            self.packed.as_ref(),
        )
    }

    /// This convolution of `x`, followed by a leaky ReLU with `slope`.
    pub fn forward_relu(&self, x: &Tensor, slope: f64) -> Result<Tensor> {
        ops::conv2d_relu(
            x,
            &self.weight,
            self.bias.as_ref(),
            self.stride,
            self.padding,
            slope,
            self.packed.as_ref(),
        )
    }

    /// [`Conv2d::forward`] without a gradient for the weight.
    pub fn forward_by_fixed_weight(&self, x: &Tensor) -> Result<Tensor> {
        ops::conv2d(
            x,
            &self.weight.detach(),
            self.bias.as_ref(),
            self.stride,
            self.padding,
        )
    }

    /// `residual` + this convolution of `x`.
    pub fn forward_add(&self, residual: &Tensor, x: &Tensor) -> Result<Tensor> {
        ops::conv2d_add(
            residual,
            x,
            &self.weight,
            self.bias.as_ref(),
            self.stride,
            self.padding,
            self.packed.as_ref(),
        )
    }

    /// The gradient of the weight for `grad` at this layer's output, without a graph.
    pub fn weight_grad(&self, x: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let (_, _, kh, kw) = self.weight.dims4()?;
        ops::conv2d_weight_grad(x, grad, (kh, kw), self.stride, self.padding)
    }
}

/// PyTorch's initialisation of a convolution's or linear map's weight and bias: uniform in
/// ±1/√fan_in.
pub fn default_init(fan_in: usize) -> Init {
    Init::Uniform {
        bound: 1.0 / (fan_in as f64).sqrt(),
    }
}

/// x Wᵀ + b over the last dimension; weight [O,I].
pub struct Linear {
    pub weight: Tensor,
    pub bias: Option<Tensor>,
    packed: Option<Packed>,
}

impl Linear {
    /// The bias starts at zero, as in every linear map of the generator.
    pub fn new(input: usize, output: usize, init: Init, scope: &Scope) -> Result<Self> {
        Ok(Self {
            weight: scope.get("weight", (output, input), init)?,
            bias: Some(scope.get("bias", output, Init::Zeros)?),
            packed: scope.packed(),
        })
    }

    pub fn unbiased(input: usize, output: usize, init: Init, scope: &Scope) -> Result<Self> {
        Ok(Self {
            weight: scope.get("weight", (output, input), init)?,
            bias: None,
            packed: scope.packed(),
        })
    }

    /// Puts a weight that no longer changes in reading order now, not at its first use on a CPU.
    pub fn pack(&self) -> Result<()> {
        match &self.packed {
            Some(packed) => ops::pack_linear(&self.weight, packed),
            None => Ok(()),
        }
    }

    /// [`Linear::forward`] of the normalized input.
    pub fn forward_normed(&self, x: Normed) -> Result<Tensor> {
        match (&self.packed, &self.bias) {
            (Some(packed), None) => ops::modulated_linear(x, &self.weight, packed),
            _ => self.forward(&x.tensor()?),
        }
    }

    /// SwiGLU of the output rows of the normalized input, [..,O/2].
    pub fn forward_swiglu(&self, x: Normed) -> Result<Tensor> {
        match (&self.packed, &self.bias) {
            (Some(packed), None) => ops::modulated_swiglu(x, &self.weight, packed),
            _ => ops::swiglu(&self.forward(&x.tensor()?)?),
        }
    }

    /// x + gate·(this map of `branch`), x [B,N,O] and gate [B,O].
    pub fn forward_gated(&self, x: &Tensor, gate: &Tensor, branch: &Tensor) -> Result<Tensor> {
        match (&self.packed, &self.bias) {
            (Some(packed), None) => ops::gated_linear(x, gate, branch, &self.weight, packed),
            _ => ops::gate_residual(x, gate, &self.forward(branch)?),
        }
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::linear_packed(x, &self.weight, self.bias.as_ref(), self.packed.as_ref())
    }
}

/// GroupNorm over C of a map [B,H,W,C], eps 1e-6, optionally followed by SiLU.
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
}

impl GroupNorm {
    pub fn new(channels: usize, groups: usize, scope: &Scope) -> Result<Self> {
        Ok(Self {
            weight: scope.get("weight", channels, Init::Ones)?,
            bias: scope.get("bias", channels, Init::Zeros)?,
            groups,
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.apply(x, Activation::None)
    }

    pub fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        self.apply(x, Activation::Silu)
    }

    fn apply(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        ops::group_norm(x, &self.weight, &self.bias, self.groups, 1e-6, activation)
    }
}
