//! `[tokenizer]`, `[quantizer]` and `[schedule]`: the architecture of the first stage (section 3.1,
//! Algorithm 1, Table 4).

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenizerConfig {
    /// Base width.
    pub ch: usize,
    /// Channel multiplier of each level, times `ch`; every level but the last halves the
    /// resolution.
    pub ch_mult: Vec<usize>,
    /// Residual blocks per level in the encoder; the decoder has one more.
    pub num_res_blocks: usize,
    /// Latent channels d.
    pub embed_dim: usize,
    pub norm_groups: usize,
    /// Space-to-depth factor before the encoder [ours]; the paper's is 1.
    pub patch: usize,
}

/// How L_quant is reduced over the steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reduction {
    /// Weighted average: divided by the sum of the weights [ours].
    Mean,
    /// Eq. 4 as printed.
    Sum,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuantizerConfig {
    /// Codebook size K.
    pub codebook_size: usize,
    /// Steps T.
    pub steps: usize,
    /// v' = e + conv3×3(e).
    pub bias: bool,
    /// γ_t = α_t; if false, 1.
    pub weight: bool,
    pub reduction: Reduction,
    /// Weight δ of the commitment term.
    pub commitment: f64,
    /// Replace hardly used codes by noisy vectors, every `restart_every` steps in the first 80 % of
    /// training [ours].
    pub restart_dead_codes: bool,
    pub restart_every: u64,
    /// Standard deviation of the initial codes.
    pub init_std: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleKind {
    /// φ^(T−t)
    Pow,
    /// t / T
    Linear,
    /// sin(π/2 · t/T)
    Sin,
    /// The logarithm of the signal-to-noise ratio rises linearly; 1 at T [ours].
    Logit,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleConfig {
    pub kind: ScheduleKind,
    pub phi: f64,
    /// logit(α²) at t = 1 and at t = T − 1, for [`ScheduleKind::Logit`].
    pub logit: (f64, f64),
}

impl TokenizerConfig {
    /// Pixels per latent position, along one side.
    pub fn downsampling(&self) -> usize {
        self.patch << self.ch_mult.len().saturating_sub(1)
    }
}

impl Default for TokenizerConfig {
    fn default() -> Self {
        Self {
            ch: 128,
            ch_mult: vec![1, 1, 2, 2, 4],
            num_res_blocks: 2,
            embed_dim: 32,
            norm_groups: 32,
            patch: 1,
        }
    }
}

impl Default for QuantizerConfig {
    fn default() -> Self {
        Self {
            codebook_size: 4096,
            steps: 10,
            bias: true,
            weight: true,
            reduction: Reduction::Mean,
            commitment: 0.25,
            restart_dead_codes: true,
            restart_every: 100,
            init_std: 0.5,
        }
    }
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self {
            kind: ScheduleKind::Pow,
            phi: 0.75,
            logit: (-5.0, 4.0),
        }
    }
}
