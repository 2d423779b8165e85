//! Blocks used by encoder and decoder (VQGAN): residual block, attention, one resolution level, the
//! middle.
//!
//! Maps are [B,H,W,C]; names are taming-transformers'.

use std::sync::{Arc, OnceLock};

use candle_core::{Result, Tensor};

use super::layers::{Conv2d, GroupNorm};
use crate::ops::{self, Packed, arrange, tape};
use crate::store::Scope;

/// x + conv(silu(norm(conv(silu(norm(x)))))), with a 1×1 shortcut where the width changes.
pub struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
}

impl ResnetBlock {
    pub fn new(input: usize, output: usize, groups: usize, scope: &Scope) -> Result<Self> {
        Ok(Self {
            norm1: GroupNorm::new(input, groups, &scope.push("norm1"))?,
            conv1: Conv2d::same(input, output, 3, &scope.push("conv1"))?,
            norm2: GroupNorm::new(output, groups, &scope.push("norm2"))?,
            conv2: Conv2d::same(output, output, 3, &scope.push("conv2"))?,
            shortcut: match input == output {
                true => None,
                false => Some(Conv2d::same(input, output, 1, &scope.push("nin_shortcut"))?),
            },
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let h = self.conv1.forward(&self.norm1.forward_silu(x)?)?;
        let h = self.norm2.forward_silu(&h)?;
        match &self.shortcut {
            Some(shortcut) => self.conv2.forward_add(&shortcut.forward(x)?, &h),
            None => self.conv2.forward_add(x, &h),
        }
    }
}

/// x + proj(attention(norm(x))): one head of width C over the H·W positions.
pub struct AttnBlock {
    norm: GroupNorm,
    q: Conv2d,
    k: Conv2d,
    v: Conv2d,
    proj_out: Conv2d,
    /// The three projections as one linear map, if the weights do not change.
    qkv: Option<(OnceLock<(Tensor, Tensor)>, Packed)>,
}

impl AttnBlock {
    pub fn new(channels: usize, groups: usize, scope: &Scope) -> Result<Self> {
        let conv = |name| Conv2d::same(channels, channels, 1, &scope.push(name));
        Ok(Self {
            norm: GroupNorm::new(channels, groups, &scope.push("norm"))?,
            q: conv("q")?,
            k: conv("k")?,
            v: conv("v")?,
            proj_out: conv("proj_out")?,
            qkv: scope.packed().map(|packed| (OnceLock::new(), packed)),
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (b, h, w, c) = x.dims4()?;
        let n = arrange::reshape(&self.norm.forward(x)?, (b, h * w, c))?;
        let qkv = self.qkv(&n)?; // [B,H·W,3C]
        let a = arrange::reshape(&ops::attention(&qkv, 1, None)?, (b, h, w, c))?;
        self.proj_out.forward_add(x, &a)
    }

    /// The three 1×1 convolutions of x [B,H·W,C]: [B,H·W,3C].
    fn qkv(&self, x: &Tensor) -> Result<Tensor> {
        let Some((once, packed)) = &self.qkv else {
            let (weight, bias) = self.stacked()?;
            return ops::linear(x, &weight, Some(&bias));
        };
        let (weight, bias) = match once.get() {
            Some(stacked) => stacked,
            None => {
                let stacked = self.stacked()?;
                once.get_or_init(|| stacked)
            }
        };
        ops::linear_packed(x, weight, Some(bias), Some(packed))
    }

    /// Weight and bias of the three projections as one linear map: [3C,C], [3C].
    fn stacked(&self) -> Result<(Tensor, Tensor)> {
        let parts = [&self.q, &self.k, &self.v];
        let weights: Vec<&Tensor> = parts.iter().map(|p| &p.weight).collect();
        let biases: Vec<&Tensor> = parts.iter().filter_map(|p| p.bias.as_ref()).collect();
        let weight = arrange::stacked(&weights)?; // [3C,C,1,1]
        let (outputs, inputs) = (weight.dim(0)?, weight.dim(1)?);
        let weight = arrange::reshape(&weight, (outputs, inputs))?;
        Ok((weight, arrange::stacked(&biases)?))
    }
}

/// One resolution level: residual blocks, each followed by attention if configured.
pub struct Level {
    blocks: Vec<Arc<ResnetBlock>>,
    attention: Vec<AttnBlock>,
    /// Compute the residual blocks again in the backward pass, instead of keeping what is in them.
    recompute: bool,
}

impl Level {
    pub fn new(
        input: usize,
        output: usize,
        blocks: usize,
        attention: bool,
        groups: usize,
        scope: &Scope,
    ) -> Result<Self> {
        let block = |i| {
            let input = if i == 0 { input } else { output };
            ResnetBlock::new(input, output, groups, &scope.push("block").push(i)).map(Arc::new)
        };
        let attn = |i| AttnBlock::new(output, groups, &scope.push("attn").push(i));
        let attentions = if attention { blocks } else { 0 };
        Ok(Self {
            blocks: (0..blocks).map(block).collect::<Result<_>>()?,
            attention: (0..attentions).map(attn).collect::<Result<_>>()?,
            recompute: false,
        })
    }

    /// The same with residual blocks that keep only their inputs for the gradient.
    pub fn recomputing(self) -> Self {
        Self {
            recompute: true,
            ..self
        }
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for (i, block) in self.blocks.iter().enumerate() {
            x = match self.recompute {
                true => {
                    let block = block.clone();
                    tape::recomputed(&x, move |x| block.forward(x))?
                }
                false => block.forward(&x)?,
            };
            if let Some(attention) = self.attention.get(i) {
                x = attention.forward(&x)?;
            }
        }
        Ok(x)
    }
}

/// The lowest resolution: residual block, attention, residual block.
pub struct Mid {
    block_1: ResnetBlock,
    attn_1: AttnBlock,
    block_2: ResnetBlock,
}

impl Mid {
    pub fn new(channels: usize, groups: usize, scope: &Scope) -> Result<Self> {
        Ok(Self {
            block_1: ResnetBlock::new(channels, channels, groups, &scope.push("block_1"))?,
            attn_1: AttnBlock::new(channels, groups, &scope.push("attn_1"))?,
            block_2: ResnetBlock::new(channels, channels, groups, &scope.push("block_2"))?,
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.attn_1.forward(&self.block_1.forward(x)?)?;
        self.block_2.forward(&x)
    }
}
