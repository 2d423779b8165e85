//! LPIPS's distance in plain candle operations.

use candle_core::{D, Result, Tensor};

use super::EPS;

pub(super) fn feature_distance(a: &Tensor, b: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let square = (unit(a)? - unit(b)?)?.sqr()?;
    let positions = (a.elem_count() / weight.elem_count()) as f64;
    square.broadcast_mul(weight)?.sum_all()? / positions
}

/// x/(‖x‖ + 1e-10), with value and gradient 0 if ‖x‖ is 0.
fn unit(x: &Tensor) -> Result<Tensor> {
    let square = x.sqr()?.sum_keepdim(D::Minus1)?;
    let alive = square.gt(&square.zeros_like()?)?;
    let safe = alive.where_cond(&square, &square.ones_like()?)?;
    let inverse = ((safe.sqrt()? + EPS)?.recip()? * alive.to_dtype(x.dtype())?)?;
    x.broadcast_mul(&inverse)
}
