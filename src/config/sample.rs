//! `[sample]`: defaults of the sampling flags.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum CfgSchedule {
    Constant,
    /// λ(t−1)/(T−1)
    Linear,
}

/// Defaults for sampling; each has a command-line flag.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleConfig {
    /// The paper's λ: 0 is off; DiT's and LlamaGen's scale is 1 + λ.
    pub cfg: f64,
    pub cfg_schedule: CfgSchedule,
    pub temperature: f64,
    pub gumbel: bool,
    pub batch_size: usize,
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self {
            cfg: 4.0,
            cfg_schedule: CfgSchedule::Linear,
            temperature: 1.0,
            gumbel: true,
            batch_size: 16,
        }
    }
}

/// Whether `x` is a valid λ of guidance: beyond a million the largest logits, multiplied by it and
/// by 1/temperature, could leave f32.
pub fn is_guidance(x: f64) -> bool {
    (0.0..=1e6).contains(&x)
}

/// Whether `x` is a valid temperature: it and its inverse are finite and above 0, also in the f32
/// of the logits.
pub fn is_temperature(x: f64) -> bool {
    [x, 1.0 / x]
        .iter()
        .all(|&x| x as f32 > 0.0 && (x as f32).is_finite())
}
