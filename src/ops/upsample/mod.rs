//! Nearest-neighbour upsampling: y[b,i,j,c] = x[b,⌊i/2⌋,⌊j/2⌋,c]. [B,H,W,C] → [B,2H,2W,C].
//!
//! Gradient: the sum of dy over each square of four.

mod cpu;
mod reference;

#[cfg(test)]
mod tests;

use candle_core::{Result, Tensor, bail};

use super::{slices, tape};

/// Doubles height and width of `x` [B,H,W,C] by repetition.
pub fn upsample_nearest2x(x: &Tensor) -> Result<Tensor> {
    if x.rank() != 4 {
        bail!(
            "upsample_nearest2x: the map must be [B,H,W,C], found {:?}",
            x.dims()
        );
    }
    if !slices::are_f32_on_cpu(&[x]) {
        return tape::plain([x], |[x]| reference::upsample_nearest2x(x));
    }
    tape::apply1(x, cpu::Upsample)
}
