//! Sizes of one pass, and which of them the kernels support.

use candle_core::{Result, bail};

use crate::config::Config;
use crate::model::generator::swiglu_width;
use crate::ops::adaln::cuda::AdalnSizes;
use crate::ops::attention::cuda::AttentionSizes;

/// Sizes of one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// B
    pub batch: usize,
    /// N
    pub tokens: usize,
    /// C
    pub width: usize,
    pub heads: usize,
    /// F, the width of SwiGLU.
    pub hidden: usize,
    /// K
    pub codes: usize,
    /// d
    pub latent: usize,
    /// Width after mixing noise and sum.
    pub mix: usize,
    pub depth: usize,
    /// R of modulations of low rank.
    pub rank: Option<usize>,
    pub classes: usize,
    /// T
    pub steps: usize,
}

impl Sizes {
    /// B·N
    pub fn rows(&self) -> usize {
        self.batch * self.tokens
    }

    /// A generator's, with `batch` images per pass.
    ///
    /// Errors: a size that the kernels do not support, by name.
    pub fn of(config: &Config, classes: usize, batch: usize) -> Result<Self> {
        let (side, generator) = (config.grid(), &config.generator);
        let latent = config.tokenizer.embed_dim;
        let sizes = Self {
            batch,
            tokens: side * side,
            width: generator.width(),
            heads: generator.heads(),
            hidden: swiglu_width(generator.width()),
            codes: config.quantizer.codebook_size,
            latent,
            mix: generator.mix_dim(latent),
            depth: generator.depth,
            rank: generator.adaln_rank,
            classes,
            steps: config.quantizer.steps,
        };
        sizes.check()?;
        Ok(sizes)
    }

    fn check(&self) -> Result<()> {
        let served = [
            (
                "a head's width",
                self.width / self.heads,
                self.width == 64 * self.heads,
                "64",
            ),
            (
                "generator.width",
                self.width,
                self.width <= 2048,
                "at most 2048",
            ),
            (
                "quantizer.codebook_size",
                self.codes,
                self.codes <= 16384 && self.codes.is_multiple_of(8),
                "at most 16384 and a multiple of 8",
            ),
            (
                "tokenizer.embed_dim",
                self.latent,
                self.latent.is_multiple_of(8),
                "a multiple of 8",
            ),
            (
                "generator.mix_dim",
                self.mix,
                self.mix.is_multiple_of(8),
                "a multiple of 8",
            ),
            (
                "generator.adaln_rank",
                self.rank.unwrap_or(0),
                self.rank
                    .is_none_or(|rank| rank > 0 && rank.is_multiple_of(8)),
                "a multiple of 8",
            ),
            ("generator.depth", self.depth, self.depth > 0, "at least 1"),
        ];
        for (name, value, good, expected) in served {
            if !good {
                bail!("the GPU's generator serves {name} of {expected}, found {value}");
            }
        }
        Ok(())
    }

    /// Columns of all modulations of an image: six per block, two at the end.
    pub fn modulations(&self) -> usize {
        (6 * self.depth + 2) * self.width
    }

    /// Columns of the narrow halves of an image's modulations, R per block; 0 if they are of full
    /// rank.
    pub fn narrow(&self) -> usize {
        self.depth * self.rank.unwrap_or(0)
    }

    pub fn adaln(&self) -> AdalnSizes {
        AdalnSizes {
            batch: self.batch,
            tokens: self.tokens,
            width: self.width,
            stride: self.modulations(),
        }
    }

    pub fn attention(&self) -> AttentionSizes {
        AttentionSizes {
            batch: self.batch,
            tokens: self.tokens,
            heads: self.heads,
        }
    }

    /// [B,N,C]
    pub fn map(&self) -> [usize; 3] {
        [self.batch, self.tokens, self.width]
    }

    /// [B,C] and the number of classes, of the label embedding.
    pub fn labelled(&self) -> [usize; 3] {
        [self.batch, self.width, self.classes]
    }

    /// [B·N, C, F], of the matmuls that SwiGLU is fused into.
    pub fn gated(&self) -> [usize; 3] {
        [self.rows(), self.width, self.hidden]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_without_kernels_is_refused_by_name() {
        let refused = |change: &dyn Fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            Sizes::of(&config, 10, 1).unwrap_err().to_string()
        };
        assert!(Sizes::of(&Config::default(), 10, 1).is_ok());
        for (text, expected) in [
            (
                refused(&|c| c.generator.heads = Some(6)),
                "a head's width of 64, found 128",
            ),
            (
                refused(&|c| c.quantizer.codebook_size = 16392),
                "quantizer.codebook_size of at most 16384 and a multiple of 8, found 16392",
            ),
            (
                refused(&|c| c.tokenizer.embed_dim = 12),
                "tokenizer.embed_dim of a multiple of 8, found 12",
            ),
            (
                refused(&|c| c.generator.adaln_rank = Some(0)),
                "generator.adaln_rank of a multiple of 8, found 0",
            ),
        ] {
            assert!(text.contains(expected), "{text}");
        }
    }
}
