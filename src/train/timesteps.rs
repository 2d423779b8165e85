//! Which step t a training example is drawn at: uniformly, or half of the time by each step's share
//! of the loss [ours], so that steps without information take fewer examples. No loss is
//! reweighted.
//!
//! p(t) = ½·1/T + ½·l_t / Σ l, where l is the running average of the loss at t, brought up to date
//! every [`REFRESH`] steps of training.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use crate::config::Timesteps;
use crate::error::{Context, Result, hinted};
use crate::rng::StreamRng;

/// Steps of training between two refreshes.
const REFRESH: u64 = 64;
/// How much of the average a refresh replaces.
const NEW: f64 = 0.25;
/// Names in a checkpoint of the average [T], and of the sums since the last refresh [T,2].
const AVERAGE: &str = "timesteps.loss";
const SINCE: &str = "timesteps.since";

/// The distribution of t.
#[derive(Debug, Clone)]
pub struct Drawn {
    kind: Timesteps,
    /// l_t; zeros before the first refresh, which draws uniformly.
    average: Vec<f64>,
}

impl Drawn {
    pub fn new(kind: Timesteps, steps: usize) -> Self {
        Self {
            kind,
            average: vec![0.0; steps],
        }
    }

    /// Whether losses have to be given to it.
    pub fn by_loss(&self) -> bool {
        self.kind == Timesteps::Loss
    }

    /// A step in 1..T.
    pub fn draw(&self, mut draws: StreamRng) -> u32 {
        let steps = self.average.len() as u32;
        let total: f64 = self.average.iter().sum();
        if !self.by_loss() || total <= 0.0 {
            return draws.below(steps) + 1;
        }
        let mut left = f64::from(draws.uniform());
        for (t, loss) in (1..).zip(&self.average) {
            left -= 0.5 / f64::from(steps) + 0.5 * loss / total;
            if left < 0.0 {
                return t;
            }
        }
        steps // what rounding left
    }

    /// Whether the average is brought up to date after `step` (from 0).
    pub fn refreshes(&self, step: u64) -> bool {
        self.by_loss() && (step + 1).is_multiple_of(REFRESH)
    }

    /// Brings the average up to date by sums and counts of the losses at each t since the last
    /// refresh. What is not finite or not there changes nothing.
    pub fn refresh(&mut self, sums: &[(f64, f64)]) {
        for (average, (sum, count)) in self.average.iter_mut().zip(sums) {
            let mean = sum / count;
            if mean.is_finite() {
                let share = if *average == 0.0 { 1.0 } else { NEW };
                *average += share * (mean - *average);
            }
        }
    }

    /// What a checkpoint needs, and the sums since the last refresh; nothing where t is uniform.
    pub fn tensors(&self, since: &[(f64, f64)]) -> Result<Vec<(String, Tensor)>> {
        if !self.by_loss() {
            return Ok(Vec::new());
        }
        let flat: Vec<f64> = since.iter().flat_map(|&(sum, n)| [sum, n]).collect();
        Ok(vec![
            (
                AVERAGE.to_string(),
                Tensor::new(self.average.as_slice(), &Device::Cpu)?,
            ),
            (
                SINCE.to_string(),
                Tensor::from_vec(flat, (since.len(), 2), &Device::Cpu)?,
            ),
        ])
    }

    /// Takes what [`Drawn::tensors`] made out of a checkpoint's tensors; returns the sums.
    ///
    /// Errors: it is not there.
    pub fn restore(&mut self, tensors: &mut BTreeMap<String, Tensor>) -> Result<Vec<(f64, f64)>> {
        if !self.by_loss() {
            return Ok(Vec::new());
        }
        let mut take = |name: &str| {
            let found = tensors.remove(name);
            found.with_context(|| format!("damaged checkpoint: it holds no `{name}`"))
        };
        let average: Vec<f64> = take(AVERAGE)?.to_vec1()?;
        let since = take(SINCE)?.to_vec2::<f64>()?;
        let steps = self.average.len();
        if average.len() != steps || since.len() != steps {
            return Err(hinted(
                format!(
                    "damaged checkpoint: expected losses at {steps} steps, found {} and {}",
                    average.len(),
                    since.len()
                ),
                "name another of the run's checkpoints: RUN/checkpoints/step-N",
            ));
        }
        self.average = average;
        Ok(since.iter().map(|row| (row[0], row[1])).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Stream};

    fn draws(index: u64) -> StreamRng {
        Stream::new(5, Purpose::Timestep, index, 0).draws()
    }

    fn counts(drawn: &Drawn, total: u64) -> Vec<f64> {
        let mut counts = vec![0.0; drawn.average.len()];
        for index in 0..total {
            counts[drawn.draw(draws(index)) as usize - 1] += 1.0;
        }
        counts
    }

    #[test]
    fn half_of_the_draws_are_by_the_share_of_the_loss() {
        let (total, mut drawn) = (40_000, Drawn::new(Timesteps::Loss, 4));
        drawn.refresh(&[(0.0, 3.0), (6.0, 2.0), (f64::NAN, 1.0), (1.0, 1.0)]);
        for (found, p) in counts(&drawn, total).iter().zip([0.125, 0.5, 0.125, 0.25]) {
            let (n, p) = (total as f64, f64::from(p as f32));
            assert!(
                (found - n * p).abs() < 4.5 * (n * p * (1.0 - p)).sqrt(),
                "{found} at {p}"
            );
        }
    }

    #[test]
    fn the_average_follows_and_survives_a_checkpoint() -> Result<()> {
        let mut drawn = Drawn::new(Timesteps::Loss, 2);
        drawn.refresh(&[(8.0, 2.0), (0.0, 0.0)]);
        drawn.refresh(&[(0.0, 2.0), (3.0, 1.0)]);
        assert_eq!(drawn.average, [3.0, 3.0]);
        assert!(drawn.refreshes(63) && !drawn.refreshes(64));
        let since = [(1.0, 2.0), (3.0, 4.0)];
        let mut tensors: BTreeMap<_, _> = drawn.tensors(&since)?.into_iter().collect();
        let mut again = Drawn::new(Timesteps::Loss, 2);
        assert_eq!(again.restore(&mut tensors)?, since);
        assert_eq!(again.average, drawn.average);
        assert!(tensors.is_empty() && again.restore(&mut tensors).is_err());
        Ok(())
    }

    #[test]
    fn without_losses_t_is_what_it_always_was() {
        let (uniform, mut by_loss) = (
            Drawn::new(Timesteps::Uniform, 10),
            Drawn::new(Timesteps::Loss, 10),
        );
        for index in 0..100 {
            let expected = draws(index).below(10) + 1;
            assert_eq!(uniform.draw(draws(index)), expected);
            assert_eq!(by_loss.draw(draws(index)), expected);
        }
        by_loss.refresh(&[(1.0, 1.0); 10]);
        assert!(counts(&by_loss, 2_000).iter().all(|&n| n > 120.0));
        assert!(!uniform.refreshes(63));
    }
}
