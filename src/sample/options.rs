//! How codes are drawn from the generator's logits: guidance, temperature, top-k, top-p and noise.

use super::choose::Choice;
use crate::config::{CfgSchedule, SampleConfig, is_guidance, is_temperature};

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

/// What somebody asks for; what is None keeps the model's setting.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wishes {
    pub cfg: Option<f64>,
    pub cfg_schedule: Option<CfgSchedule>,
    pub temperature: Option<f64>,
    pub gumbel: Option<bool>,
    pub top_k: Option<usize>,
    pub top_p: Option<f64>,
}

/// Why codes cannot be drawn as somebody wishes. `name` is that of the field in [`Wishes`].
#[derive(Debug, PartialEq)]
pub enum Impossible {
    OutOfRange {
        name: &'static str,
        value: f64,
        allowed: &'static str,
    },
    /// It has no meaning where the most likely code is taken.
    WithoutGumbel { name: &'static str },
}

impl Wishes {
    /// The model's settings, overridden by these.
    pub fn over(&self, own: impl Into<SampleOptions>) -> Result<SampleOptions, Impossible> {
        let own = own.into();
        let options = SampleOptions {
            cfg: self.cfg.unwrap_or(own.cfg),
            cfg_schedule: self.cfg_schedule.unwrap_or(own.cfg_schedule),
            temperature: self.temperature.unwrap_or(own.temperature),
            gumbel: self.gumbel.unwrap_or(own.gumbel),
            top_k: self.top_k,
            top_p: self.top_p,
        };
        let (k, p) = (
            self.top_k.map_or(1.0, |k| k as f64),
            self.top_p.unwrap_or(1.0),
        );
        for (name, value, valid, allowed) in [
            (
                "cfg",
                options.cfg,
                is_guidance(options.cfg),
                "0 (off) to 1e6",
            ),
            (
                "temperature",
                options.temperature,
                is_temperature(options.temperature),
                "above 0",
            ),
            ("top_k", k, k > 0.0, "at least 1"),
            ("top_p", p, p > 0.0 && p <= 1.0, "above 0 and at most 1"),
        ] {
            if !valid || !value.is_finite() {
                return Err(Impossible::OutOfRange {
                    name,
                    value,
                    allowed,
                });
            }
        }
        let drawn = [
            ("temperature", self.temperature.is_some()),
            ("top_k", self.top_k.is_some()),
            ("top_p", self.top_p.is_some()),
        ];
        match drawn.iter().find(|(_, given)| *given && !options.gumbel) {
            Some((name, _)) => Err(Impossible::WithoutGumbel { name }),
            None => Ok(options),
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
