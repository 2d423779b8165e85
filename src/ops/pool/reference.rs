//! The reference: one window offset after the other.

use candle_core::{Result, Tensor};

use super::Window;

pub(super) fn max_pool2d(x: &Tensor, window: &Window) -> Result<Tensor> {
    let taps = window.taps(x, f64::from(f32::MIN))?;
    // Strictly greater, so that the first of equal values is kept and gets the gradient.
    taps[1..].iter().try_fold(taps[0].clone(), |best, tap| {
        tap.gt(&best)?.where_cond(tap, &best)
    })
}

pub(super) fn avg_pool2d(x: &Tensor, window: &Window) -> Result<Tensor> {
    let sum = |taps: Vec<Tensor>| {
        taps[1..]
            .iter()
            .try_fold(taps[0].clone(), |sum, tap| &sum + tap)
    };
    let count = sum(window.taps(&x.detach().ones_like()?, 0.0)?)?;
    sum(window.taps(x, 0.0)?)? / count
}
