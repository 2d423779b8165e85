//! The activation that follows a normalization in the same pass: none, SiLU x·σ(x), or a leaky
//! ReLU.

use crate::ops::simd;
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
    /// In plain candle operations.
    pub(in crate::ops) fn reference(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::None => Ok(x.clone()),
            Self::Silu => x.silu(),
            Self::LeakyRelu(slope) => super::reference::leaky_relu(x, slope),
        }
    }
}

/// An activation and its derivative, for a loop over f32.
pub(in crate::ops) trait Pointwise: Copy + Sync {
    fn value(self, z: f32) -> f32;
    fn derivative(self, z: f32) -> f32;
}

#[derive(Clone, Copy)]
pub(in crate::ops) struct Identity;

impl Pointwise for Identity {
    #[inline(always)]
    fn value(self, z: f32) -> f32 {
        z
    }

    #[inline(always)]
    fn derivative(self, _: f32) -> f32 {
        1.0
    }
}

#[derive(Clone, Copy)]
pub(in crate::ops) struct Silu;

impl Pointwise for Silu {
    #[inline(always)]
    fn value(self, z: f32) -> f32 {
        simd::silu(z)
    }

    #[inline(always)]
    fn derivative(self, z: f32) -> f32 {
        simd::silu_derivative(z)
    }
}

#[derive(Clone, Copy)]
pub(in crate::ops) struct LeakyRelu(pub(in crate::ops) f32);

impl Pointwise for LeakyRelu {
    #[inline(always)]
    fn value(self, z: f32) -> f32 {
        if z > 0.0 { z } else { self.0 * z }
    }

    #[inline(always)]
    fn derivative(self, z: f32) -> f32 {
        if z > 0.0 { 1.0 } else { self.0 }
    }
}
