//! How codes are drawn from the generator's logits: guidance, temperature, top-k, top-p and noise.

use super::choose::Choice;
use crate::config::{CfgSchedule, SampleConfig};

/// How codes are drawn from the generator's logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleOptions {
    /// The paper's λ; 0 is off.
    pub cfg: f64,
    pub cfg_schedule: CfgSchedule,
    /// Divides the logits: 1/τ.
    pub temperature: f64,
    /// Gumbel noise; without it every position takes its most likely code.
    pub gumbel: bool,
    pub top_k: Option<usize>,
    pub top_p: Option<f64>,
}

impl From<&SampleConfig> for SampleOptions {
    fn from(config: &SampleConfig) -> Self {
        Self {
            cfg: config.cfg,
            cfg_schedule: config.cfg_schedule,
            temperature: config.temperature,
            gumbel: config.gumbel,
            top_k: None,
            top_p: None,
        }
    }
}

impl SampleOptions {
    /// Whether step t of `steps` runs the unconditional half.
    pub fn guided(&self, t: usize, steps: usize) -> bool {
        self.choice(t, steps).lambda != 0.0
    }

    /// The operations on the logits of step t of `steps`. λ_t is λ, or with the linear schedule
    /// λ(t−1)/(T−1), and λ if T = 1 [ours: the endpoints of the line].
    pub(super) fn choice(&self, t: usize, steps: usize) -> Choice {
        let lambda = match self.cfg_schedule {
            CfgSchedule::Linear if steps > 1 => self.cfg * (t - 1) as f64 / (steps - 1) as f64,
            _ => self.cfg,
        };
        Choice {
            lambda: lambda as f32,
            tau: (1.0 / self.temperature) as f32,
            top_k: self.top_k,
            top_p: self.top_p.map(|p| p as f32),
        }
    }
}
