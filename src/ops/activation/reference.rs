//! The reference: a selection, whose gradient goes to the selected branch.

use candle_core::{Result, Tensor};

pub(super) fn leaky_relu(x: &Tensor, slope: f64) -> Result<Tensor> {
    let x = x.contiguous()?;
    // 0·(−∞) would be NaN.
    let below = match slope == 0.0 {
        true => x.zeros_like()?,
        false => x.affine(slope, 0.0)?,
    };
    x.le(0.0)?.where_cond(&below, &x)
}
