//! SiLU: y = x·σ(x). Any shape. Gradient: σ(x)·(1 + x·(1 − σ(x))).

use candle_core::{Result, Tensor};

/// x·σ(x).
pub fn silu(x: &Tensor) -> Result<Tensor> {
    x.silu()
}
