//! Maps side by side: [B,H,W,C₁], [B,H,W,C₂], .. → [B,H,W,C₁ + C₂ + ..].
//!
//! On a GPU one pass for f16 maps without a gradient, whose channels are multiples of eight; else
//! candle's concatenation.

#[cfg(feature = "cuda")]
pub mod check;
#[cfg(feature = "cuda")]
mod cuda;

use candle_core::{Result, Tensor, bail};

/// The maps, in order, along the channels.
pub fn concatenate(maps: &[Tensor]) -> Result<Tensor> {
    match maps {
        [] => bail!("concatenate: no maps"),
        [one] => Ok(one.clone()),
        #[cfg(feature = "cuda")]
        maps if cuda::serves(maps)? => cuda::concatenate(maps),
        maps => Tensor::cat(maps, 3),
    }
}
