//! VQGAN's decoder: latents [B,h,w,d] to pixels [B,H,W,P], with one residual block more per level
//! than the encoder.
//!
//! `up.i` is resolution level i; the levels run from the lowest resolution (the last) upwards.

use candle_core::{Result, Tensor};

use super::blocks::{Level, Mid};
use super::encoder::pixel_channels;
use super::layers::{Conv2d, GroupNorm};
use super::upsample::Upsample;
use crate::config::TokenizerConfig;
use crate::store::Scope;

pub struct Decoder {
    conv_in: Conv2d,
    mid: Mid,
    /// In the order of execution.
    up: Vec<(Level, Option<Upsample>)>,
    norm_out: GroupNorm,
    pub conv_out: Conv2d,
}

impl Decoder {
    pub fn new(config: &TokenizerConfig, scope: &Scope) -> Result<Self> {
        let scope = &scope.clone().with_winograd();
        let (groups, levels) = (config.norm_groups, config.ch_mult.len());
        let mut c = config.ch * config.ch_mult[levels - 1];
        let conv_in = Conv2d::same(config.embed_dim, c, 3, &scope.push("conv_in"))?;
        let mid = Mid::new(c, groups, &scope.push("mid"))?;
        let mut up = Vec::new();
        for (i, mult) in config.ch_mult.iter().enumerate().rev() {
            let scope = scope.push("up").push(i);
            let (input, lowest) = (c, i + 1 == levels);
            c = config.ch * mult;
            let blocks = config.num_res_blocks + 1;
            let level = Level::new(input, c, blocks, lowest, groups, &scope)?;
            let change = match i {
                0 => None,
                _ => Some(Upsample::new(c, &scope.push("upsample"))?),
            };
            up.push((level, change));
        }
        Ok(Self {
            conv_in,
            mid,
            up,
            norm_out: GroupNorm::new(c, groups, &scope.push("norm_out"))?,
            conv_out: Conv2d::same(c, pixel_channels(config), 3, &scope.push("conv_out"))?,
        })
    }

    /// The same with residual blocks that keep only their inputs for the gradient, in the last
    /// `levels` levels, the ones of the largest maps.
    pub fn recomputing(self, levels: usize) -> Self {
        let kept = self.up.len().saturating_sub(levels);
        let change = |(i, (level, up)): (usize, (Level, _))| match i < kept {
            true => (level, up),
            false => (level.recomputing(), up),
        };
        Self {
            up: self.up.into_iter().enumerate().map(change).collect(),
            ..self
        }
    }

    /// Everything before `conv_out`: [B,h,w,d] to [B,H,W,ch].
    pub fn features(&self, z: &Tensor) -> Result<Tensor> {
        let mut h = self.mid.forward(&self.conv_in.forward(z)?)?;
        for (level, upsample) in &self.up {
            h = level.forward(&h)?;
            if let Some(upsample) = upsample {
                h = upsample.forward(&h)?;
            }
        }
        self.norm_out.forward_silu(&h)
    }
}
