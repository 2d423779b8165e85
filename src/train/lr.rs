//! The learning rate schedule: linear warm-up, then constant, a half cosine, or constant and then
//! linear to the end (the last two are [ours]).

use crate::config::{LrSchedule, TrainConfig};

/// The learning rate of `step` (from 0) of `steps`: lr · min(1, (step+1)/warmup) · s, where s is 1,
/// or falls from 1 to `lr_min` as ½(1 + cos(π·step/steps)) or as (steps − step)/(lr_decay·steps).
pub fn learning_rate(config: &TrainConfig, step: u64, steps: u64) -> f64 {
    let warm = ((step + 1) as f64 / config.warmup_steps.max(1) as f64).min(1.0);
    let falling = |height: f64| config.lr_min + (1.0 - config.lr_min) * height;
    let schedule = match config.lr_schedule {
        LrSchedule::Constant => 1.0,
        LrSchedule::Cosine => {
            let share = (step as f64 / steps.max(1) as f64).min(1.0);
            falling(0.5 + 0.5 * (std::f64::consts::PI * share).cos())
        }
        LrSchedule::Wsd => {
            let left = steps.saturating_sub(step) as f64;
            falling((left / (config.lr_decay * steps.max(1) as f64)).min(1.0))
        }
    };
    config.lr * warm * schedule
}

/// A weight that is 0 before `start` and then rises linearly to 1 over `length` steps.
pub fn ramp(step: u64, start: u64, length: u64) -> f64 {
    if step < start {
        return 0.0;
    }
    ((step - start + 1) as f64 / length.max(1) as f64).min(1.0)
}

/// Decay of the moving average after `updates` updates: min(d, (1+n)/(10+n)), so that an average
/// over few updates follows quickly.
pub fn ema_decay(decay: f64, updates: u64) -> f64 {
    decay.min((1.0 + updates as f64) / (10.0 + updates as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_linearly_and_stays_or_falls() {
        let mut config = TrainConfig {
            lr: 2.0,
            warmup_steps: 4,
            ..TrainConfig::generator()
        };
        let rates = |c: &TrainConfig| [0, 1, 3, 4, 50].map(|s| learning_rate(c, s, 100));
        assert_eq!(rates(&config), [0.5, 1.0, 2.0, 2.0, 2.0]);
        config.lr_schedule = LrSchedule::Cosine;
        let cosine = rates(&config);
        assert!((cosine[4] - 1.0).abs() < 1e-12, "half way: {cosine:?}");
        assert!(learning_rate(&config, 99, 100) < 1e-3);
        config.lr_schedule = LrSchedule::Wsd;
        (config.lr_decay, config.lr_min) = (0.2, 0.0);
        assert_eq!(rates(&config), [0.5, 1.0, 2.0, 2.0, 2.0]);
        let end = |c: &TrainConfig| [80, 90, 99, 100].map(|s| learning_rate(c, s, 100));
        assert_eq!(end(&config), [2.0, 1.0, 0.1, 0.0]);
        config.lr_min = 0.5;
        assert_eq!(end(&config)[..2], [2.0, 1.5]);
        assert_eq!(learning_rate(&config, 100, 100), 1.0);
    }

    #[test]
    fn a_ramp_starts_at_its_step() {
        assert_eq!(ramp(9, 10, 4), 0.0);
        assert_eq!(ramp(10, 10, 4), 0.25);
        assert_eq!(ramp(99, 10, 4), 1.0);
        assert_eq!(ramp(10, 10, 0), 1.0);
    }

    #[test]
    fn a_young_average_follows() {
        assert_eq!(ema_decay(0.99, 0), 0.1);
        assert_eq!(ema_decay(0.99, 1_000_000), 0.99);
    }
}
