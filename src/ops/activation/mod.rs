//! Rectifiers: y = x where x > 0, slope·x elsewhere (slope 0: ReLU). Any shape.
//!
//! Gradient: dy where x > 0, slope·dy elsewhere; at 0 it is the slope, as in PyTorch (candle's `relu` gives 1).

mod cpu;
pub(super) mod fused;
mod reference;

#[cfg(test)]
mod tests;

use candle_core::{Result, Tensor};

use super::{slices, tape};
pub use fused::Activation;

/// max(x, 0).
pub fn relu(x: &Tensor) -> Result<Tensor> {
    leaky_relu(x, 0.0)
}

/// x where positive, `slope`·x elsewhere.
pub fn leaky_relu(x: &Tensor, slope: f64) -> Result<Tensor> {
    if !slices::are_f32_on_cpu(&[x]) {
        return tape::plain([x], move |[x]| reference::leaky_relu(x, slope));
    }
    let slope = slope as f32;
    tape::apply1(x, cpu::LeakyRelu { slope })
}
