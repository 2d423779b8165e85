//! LPIPS's distance of two feature maps (Zhang et al. 2018, Eq. 1): unit vectors position by position, weighted squares.
//!
//! y = mean over positions of Σ_c w_c·(â_c − b̂_c)², â = a/(‖a‖ + 1e-10) over C. a, b [..,C], weight [C] → a scalar.
//! Gradients to a and b; where a norm is 0, PyTorch's is NaN and this one is 0 [ours].

mod cpu;
mod reference;
#[cfg(test)]
mod tests;

use candle_core::{Result, Tensor};

use super::{check, slices, tape};

/// Added to every norm, as in the LPIPS package.
const EPS: f64 = 1e-10;

/// a, b [..,C]; weight [C].
pub fn feature_distance(a: &Tensor, b: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let c = check::last_dim("feature_distance", "a", a)?;
    check::shape("feature_distance", "b", b, a.dims())?;
    check::shape("feature_distance", "weight", weight, &[c])?;
    // The fast side has no gradient for the weight, which LPIPS keeps frozen.
    if slices::are_f32_on_cpu(&[a, b, weight]) && !weight.track_op() {
        return tape::apply3(a, b, weight, cpu::FeatureDistance);
    }
    tape::plain([a, b, weight], |[a, b, weight]| {
        reference::feature_distance(a, b, weight)
    })
}
