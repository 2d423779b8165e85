//! SwiGLU in plain candle operations.

use candle_core::{D, Result, Tensor};

pub(super) fn swiglu(x: &Tensor) -> Result<Tensor> {
    let f = x.dim(D::Minus1)? / 2;
    x.narrow(D::Minus1, 0, f)?.silu()? * x.narrow(D::Minus1, f, f)?
}
