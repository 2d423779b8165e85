//! A linear layer: y = x·wᵀ + bias. x [..,I], w [O,I], bias [O] → y [..,O].
//!
//! Gradients: dx = dy·w, dw = dyᵀ·x, dbias = Σ dy over rows; each only where the graph tracks the input.

pub(super) mod reference;

use candle_core::{Result, Tensor, bail};

use super::conv2d::check_bias;

/// `x` [..,I] times `weight` [O,I] transposed, plus `bias` [O]: [..,O].
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let [o, i] = *weight.dims() else {
        bail!(
            "linear: the weight must be [O,I], found {:?}",
            weight.dims()
        );
    };
    if x.dims().last() != Some(&i) {
        bail!(
            "linear: the weight [{o},{i}] takes rows of {i}, found [..,I] = {:?}",
            x.dims()
        );
    }
    check_bias("linear", bias, o)?;
    reference::linear(x, weight, bias)
}
