//! `[generator]`: the transformer of the second stage (Table 1), and our additional options.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeadInit {
    Zero,
    /// Initialised from the codebook [ours].
    Codebook,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rope {
    /// Over the raster index.
    #[serde(rename = "1d")]
    OneD,
    /// Half of each head by row, half by column [ours].
    #[serde(rename = "2d")]
    TwoD,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Timesteps {
    Uniform,
    /// Half of them by each step's share of the loss [ours].
    Loss,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GeneratorConfig {
    pub depth: usize,
    /// Width C; the default is 64·depth.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// Attention heads; the default is `depth`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// Width after mixing noise and sum; the default is `embed_dim`, as in the paper.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mix_dim: Option<usize>,
    /// Rank R of every block's modulation [ours]: C → R → 6C; by default one full matrix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adaln_rank: Option<usize>,
    pub head_init: HeadInit,
    /// Scale s of the codebook head.
    pub head_scale: f64,
    /// Standard deviation of the initial position embedding [ours]; 0 trains without one.
    pub pos_embed: f64,
    pub rope: Rope,
    pub rope_base: f64,
    /// Standard deviations of the initial label embeddings and of the time MLP's weights.
    pub label_std: f64,
    pub time_std: f64,
    pub label_dropout: f64,
    /// Probability that an element of an MLP's branch is dropped in training [ours].
    pub dropout: f64,
    /// Probability that a code before an example's step gives way to one near it [ours].
    pub perturb: f64,
    /// How an example's step t is drawn.
    pub timesteps: Timesteps,
    /// Number of classes; by default taken from the data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classes: Option<usize>,
}

impl GeneratorConfig {
    /// C
    pub fn width(&self) -> usize {
        self.width.unwrap_or(64 * self.depth)
    }

    pub fn heads(&self) -> usize {
        self.heads.unwrap_or(self.depth)
    }

    /// Width after mixing noise and sum, for a tokenizer with `embed_dim` latent channels.
    pub fn mix_dim(&self, embed_dim: usize) -> usize {
        self.mix_dim.unwrap_or(embed_dim)
    }
}

impl Default for GeneratorConfig {
    fn default() -> Self {
        Self {
            depth: 12,
            width: None,
            heads: None,
            mix_dim: None,
            adaln_rank: None,
            head_init: HeadInit::Zero,
            head_scale: 4.0,
            pos_embed: 0.0,
            rope: Rope::OneD,
            rope_base: 10_000.0,
            label_std: 0.02,
            time_std: 0.02,
            label_dropout: 0.1,
            dropout: 0.0,
            perturb: 0.0,
            timesteps: Timesteps::Uniform,
            classes: None,
        }
    }
}
