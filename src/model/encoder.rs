//! VQGAN's encoder: pixels [B,H,W,P] to [B,h,w,d]; every level but the last halves the resolution.
//!
//! P is 3·patch². Attention at the lowest resolution only.

use candle_core::{Result, Tensor};

use super::blocks::{Level, Mid};
use super::layers::{Conv2d, GroupNorm};
use crate::config::TokenizerConfig;
use crate::store::Scope;

pub struct Encoder {
    conv_in: Conv2d,
    down: Vec<(Level, Option<Conv2d>)>,
    mid: Mid,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    pub fn new(config: &TokenizerConfig, scope: &Scope) -> Result<Self> {
        let groups = config.norm_groups;
        let conv_in = Conv2d::same(pixel_channels(config), config.ch, 3, &scope.push("conv_in"))?;
        let (mut down, mut c) = (Vec::new(), config.ch);
        for (i, mult) in config.ch_mult.iter().enumerate() {
            let scope = scope.push("down").push(i);
            let (input, last) = (c, i + 1 == config.ch_mult.len());
            c = config.ch * mult;
            let level = Level::new(input, c, config.num_res_blocks, last, groups, &scope)?;
            let change = match last {
                true => None,
                false => Some(Conv2d::downsample(
                    c,
                    &scope.push("downsample").push("conv"),
                )?),
            };
            down.push((level, change));
        }
        Ok(Self {
            conv_in,
            down,
            mid: Mid::new(c, groups, &scope.push("mid"))?,
            norm_out: GroupNorm::new(c, groups, &scope.push("norm_out"))?,
            conv_out: Conv2d::same(c, config.embed_dim, 3, &scope.push("conv_out"))?,
        })
    }

    /// The same with residual blocks that keep only their inputs for the gradient, in the first
    /// `levels` levels, the ones of the largest maps.
    pub fn recomputing(self, levels: usize) -> Self {
        let change = |(i, (level, down)): (usize, (Level, _))| match i < levels {
            true => (level.recomputing(), down),
            false => (level, down),
        };
        Self {
            down: self.down.into_iter().enumerate().map(change).collect(),
            ..self
        }
    }

    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let mut h = self.conv_in.forward(pixels)?;
        for (level, downsample) in &self.down {
            h = level.forward(&h)?;
            if let Some(downsample) = downsample {
                h = downsample.forward(&h)?;
            }
        }
        let h = self.mid.forward(&h)?;
        self.conv_out.forward(&self.norm_out.forward_silu(&h)?) // [B,h,w,d]
    }
}

/// Channels of the pixel map after space-to-depth.
pub fn pixel_channels(config: &TokenizerConfig) -> usize {
    3 * config.patch * config.patch
}
