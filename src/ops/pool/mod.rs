//! Pooling over windows k×k: the largest value, or the mean of the values inside the map (padding is not counted).
//! [B,H,W,C] → [B,H',W',C], H' = ⌊(H + top + bottom − k)/s⌋ + 1; windows may overlap.
//!
//! Gradient of the maximum: all of dy to the first of the largest values in row order (PyTorch's rule);
//! of the mean: dy / count to every value of the window.

mod cpu;
mod reference;

#[cfg(test)]
mod tests;

use candle_core::{Result, Tensor, bail};

use super::window::{Padding, Window};
use super::{slices, tape};
use cpu::{Kind, Pool};

/// The largest value of every `kernel`×`kernel` window of `x` [B,H,W,C].
pub fn max_pool2d(x: &Tensor, kernel: usize, stride: usize, padding: Padding) -> Result<Tensor> {
    let window = window("max_pool2d", x, kernel, stride, padding)?;
    if !slices::are_f32_on_cpu(&[x]) {
        return tape::plain([x], move |[x]| reference::max_pool2d(x, &window));
    }
    let kind = Kind::Max;
    tape::apply1(x, Pool { window, kind })
}

/// The mean of every `kernel`×`kernel` window of `x` [B,H,W,C], over the positions inside the map.
pub fn avg_pool2d(x: &Tensor, kernel: usize, stride: usize, padding: Padding) -> Result<Tensor> {
    let window = window("avg_pool2d", x, kernel, stride, padding)?;
    if !slices::are_f32_on_cpu(&[x]) {
        return tape::plain([x], move |[x]| reference::avg_pool2d(x, &window));
    }
    let kind = Kind::Average;
    tape::apply1(x, Pool { window, kind })
}

fn window(op: &str, x: &Tensor, kernel: usize, stride: usize, padding: Padding) -> Result<Window> {
    let [_, h, w, _] = *x.dims() else {
        bail!("{op}: the map must be [B,H,W,C], found {:?}", x.dims());
    };
    // A window that lies in the padding alone has neither a largest value nor a mean.
    let widest = [padding.top, padding.bottom, padding.left, padding.right];
    if widest.iter().any(|&p| p >= kernel) {
        bail!("{op}: padding {padding:?} must be smaller than the kernel {kernel}");
    }
    Window::new(op, (h, w), (kernel, kernel), stride, padding)
}
