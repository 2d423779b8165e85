//! The signal share of each step: α_t for t = 1..T (the paper's Table 4, and one of ours) and
//! β_t = √(1−α_t²).
//!
//! v_t = α_t·r_t + β_t·ε_t. α_T = 1 and β_T is exactly 0, so the last step sees no noise.

use std::f64::consts::FRAC_PI_2;

use crate::config::{ScheduleConfig, ScheduleKind};

/// α_t and β_t for t = 1..T, at index t − 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    pub alpha: Vec<f32>,
    pub beta: Vec<f32>,
}

impl Schedule {
    /// T
    pub fn steps(&self) -> usize {
        self.alpha.len()
    }

    /// The schedule of `steps` = T steps, computed in f64.
    pub fn new(config: &ScheduleConfig, steps: usize) -> Self {
        let (from, to) = config.logit;
        let alpha: Vec<f64> = (1..=steps)
            .map(|t| {
                let part = t as f64 / steps as f64;
                match config.kind {
                    ScheduleKind::Logit if t == steps => 1.0,
                    ScheduleKind::Logit => {
                        // Of the way from t = 1 to t = T − 1, which is only `from` if T = 2.
                        let way = (t - 1) as f64 / steps.saturating_sub(2).max(1) as f64;
                        (1.0 / (1.0 + (-(from + (to - from) * way)).exp())).sqrt()
                    }
                    ScheduleKind::Pow => config.phi.powi((steps - t) as i32),
                    ScheduleKind::Linear => part,
                    ScheduleKind::Sin => (FRAC_PI_2 * part).sin(),
                }
            })
            .collect();
        Self {
            beta: alpha
                .iter()
                .map(|a| (1.0 - a * a).max(0.0).sqrt() as f32)
                .collect(),
            alpha: alpha.iter().map(|&a| a as f32).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedules_are_those_of_table_4() {
        // From rdpm_ref.alphas(4, kind).
        let cases = [
            (ScheduleKind::Pow, [0.421_875, 0.5625, 0.75, 1.0]),
            (ScheduleKind::Linear, [0.25, 0.5, 0.75, 1.0]),
            (
                ScheduleKind::Sin,
                [
                    0.382_683_43,
                    std::f32::consts::FRAC_1_SQRT_2,
                    0.923_879_5,
                    1.0,
                ],
            ),
            (
                ScheduleKind::Logit,
                [0.081_809_85, 0.614_443_4, 0.990_966_1, 1.0],
            ),
        ];
        for (kind, expected) in cases {
            let config = ScheduleConfig {
                kind,
                ..ScheduleConfig::default()
            };
            let schedule = Schedule::new(&config, 4);
            for (t, (a, e)) in schedule.alpha.iter().zip(expected).enumerate() {
                assert!((a - e).abs() < 1e-7, "{kind:?} alpha_{}: {a} != {e}", t + 1);
                let b = schedule.beta[t];
                assert!((a * a + b * b - 1.0).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn the_last_step_sees_no_noise() {
        use ScheduleKind::{Linear, Logit, Pow, Sin};
        for kind in [Pow, Linear, Sin, Logit] {
            for steps in 1..=32 {
                let config = ScheduleConfig {
                    kind,
                    ..ScheduleConfig::default()
                };
                let schedule = Schedule::new(&config, steps);
                assert_eq!(
                    (schedule.alpha[steps - 1], schedule.beta[steps - 1]),
                    (1.0, 0.0)
                );
            }
        }
    }
}
