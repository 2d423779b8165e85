//! What follows a normalisation in the same pass: nothing, SiLU x·σ(x), or a leaky ReLU.

use candle_core::{Result, Tensor};

/// The activation of `group_norm` and `batch_norm`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    None,
    Silu,
    /// x where positive, slope·x elsewhere.
    LeakyRelu(f64),
}

impl Activation {
    /// Out of plain candle operations.
    pub(in crate::ops) fn reference(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::None => Ok(x.clone()),
            Self::Silu => x.silu(),
            Self::LeakyRelu(slope) => super::reference::leaky_relu(x, slope),
        }
    }
}
