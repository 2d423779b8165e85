//! Logged metrics: means over the steps since the last log line, each a scalar or one value per
//! timestep.
//!
//! They are part of a checkpoint, so that a resumed run writes the same line as an uninterrupted
//! one.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor};
use serde_json::{Map, Value, json};

use crate::error::Context;
use crate::ops::read_scalars;
use crate::world::World;

/// Weighted sums by name; a scalar has one entry, a curve over t has T.
#[derive(Debug, Clone, Default)]
pub struct StepMetrics {
    means: BTreeMap<String, Vec<Mean>>,
    /// Scalars that are still on the device.
    pending: Vec<(String, Tensor)>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Mean {
    sum: f64,
    weight: f64,
}

impl StepMetrics {
    /// Adds a value to the scalar `name`.
    pub fn add(&mut self, name: &str, value: f64) {
        self.add_curve(name, &[(value, 1.0)]);
    }

    /// Adds a value to the scalar `name`, f32 or f64; it stays on its device until
    /// [`StepMetrics::fetch`].
    pub fn add_scalar(&mut self, name: &str, value: &Tensor) {
        self.pending.push((name.to_string(), value.detach()));
    }

    /// Copies all values on the device to the host, with a single synchronisation.
    pub fn fetch(&mut self) -> Result<()> {
        let (names, scalars): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.pending).into_iter().unzip();
        for (name, value) in names.iter().zip(read_scalars(&scalars)?) {
            self.add(name, value);
        }
        Ok(())
    }

    /// Adds one (sum, weight) to every entry of the curve `name`.
    pub fn add_curve(&mut self, name: &str, sums: &[(f64, f64)]) {
        let entry = self.means.entry(name.to_string()).or_default();
        entry.resize(sums.len().max(entry.len()), Mean::default());
        for (mean, (sum, weight)) in entry.iter_mut().zip(sums) {
            mean.sum += sum;
            mean.weight += weight;
        }
    }

    pub fn merge(&mut self, other: &StepMetrics) {
        for (name, means) in &other.means {
            let sums: Vec<(f64, f64)> = means.iter().map(|m| (m.sum, m.weight)).collect();
            self.add_curve(name, &sums);
        }
        self.pending.extend(other.pending.iter().cloned());
    }

    /// The metrics of a step, from those of its micro-batches that this process computed, added in
    /// the order of all micro-batches.
    pub fn of_all(world: &World, own: Vec<StepMetrics>) -> crate::error::Result<Self> {
        let mut all = Self::default();
        for mut one in own {
            if world.size() == 1 {
                all.merge(&one);
                continue;
            }
            one.fetch()?;
            for bytes in world.gather(&one.to_bytes())? {
                let theirs = Self::from_bytes(&bytes);
                all.merge(&theirs.context("metrics of another process are not whole")?);
            }
        }
        Ok(all)
    }

    /// Each name with its length, the number of its sums, and these with their weights.
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, means) in &self.means {
            for count in [name.len(), means.len()] {
                bytes.extend_from_slice(&(count as u64).to_le_bytes());
            }
            bytes.extend_from_slice(name.as_bytes());
            for number in means.iter().flat_map(|mean| [mean.sum, mean.weight]) {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
        }
        bytes
    }

    /// What [`StepMetrics::to_bytes`] wrote; none if it is something else.
    pub(crate) fn from_bytes(mut bytes: &[u8]) -> Option<Self> {
        let mut metrics = Self::default();
        while !bytes.is_empty() {
            let counts: [u8; 16] = take(&mut bytes, 16)?.try_into().ok()?;
            let [name, means] = [&counts[..8], &counts[8..]].map(|count| {
                count
                    .try_into()
                    .map(usize::from_le_bytes)
                    .unwrap_or(usize::MAX)
            });
            let name = String::from_utf8(take(&mut bytes, name)?.to_vec()).ok()?;
            let numbers = take(&mut bytes, means.checked_mul(16)?)?;
            let (numbers, _) = numbers.as_chunks::<8>();
            let numbers: Vec<f64> = numbers.iter().map(|n| f64::from_le_bytes(*n)).collect();
            let sums: Vec<(f64, f64)> = numbers.chunks(2).map(|pair| (pair[0], pair[1])).collect();
            metrics.add_curve(&name, &sums);
        }
        Some(metrics)
    }

    /// The first name with a value that is not finite.
    pub fn first_bad(&self) -> Option<&str> {
        self.means
            .iter()
            .find(|(_, means)| means.iter().any(|m| !m.sum.is_finite()))
            .map(|(name, _)| name.as_str())
    }

    /// The mean of the scalar `name`.
    pub fn mean(&self, name: &str) -> Option<f64> {
        self.means.get(name)?.first().map(Mean::value)
    }

    /// The means as JSON; an entry without values is null.
    pub fn to_json(&self) -> Map<String, Value> {
        let value = |m: &Mean| match m.weight > 0.0 {
            true => json!(round(m.value())),
            false => Value::Null,
        };
        self.means
            .iter()
            .map(|(name, means)| {
                let json = match means.as_slice() {
                    [one] => value(one),
                    many => many.iter().map(value).collect(),
                };
                (name.clone(), json)
            })
            .collect()
    }

    /// Sums and weights as f64 tensors [n,2] named `interval.NAME`.
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        self.means
            .iter()
            .map(|(name, means)| {
                let flat: Vec<f64> = means.iter().flat_map(|m| [m.sum, m.weight]).collect();
                let tensor = Tensor::from_vec(flat, (means.len(), 2), &Device::Cpu)?;
                Ok((format!("{PREFIX}{name}"), tensor))
            })
            .collect()
    }

    /// Restores what [`StepMetrics::tensors`] wrote, taking it out of `tensors`.
    pub fn take(tensors: &mut BTreeMap<String, Tensor>) -> Result<Self> {
        let names: Vec<String> = tensors
            .keys()
            .filter(|n| n.starts_with(PREFIX))
            .cloned()
            .collect();
        let mut metrics = StepMetrics::default();
        for name in names {
            let Some(tensor) = tensors.remove(&name) else {
                continue;
            };
            let sums: Vec<(f64, f64)> = tensor
                .to_vec2::<f64>()?
                .iter()
                .map(|row| (row[0], row[1]))
                .collect();
            metrics.add_curve(&name[PREFIX.len()..], &sums);
        }
        Ok(metrics)
    }
}

const PREFIX: &str = "interval.";

/// The first `count` bytes, which are taken off.
fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (first, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(first)
}

impl Mean {
    fn value(&self) -> f64 {
        self.sum / self.weight
    }
}

/// Rounds to six significant digits, which is enough for a log.
pub fn round(x: f64) -> f64 {
    format!("{x:.5e}").parse().unwrap_or(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_weighted_and_survive_a_checkpoint() -> Result<()> {
        let mut metrics = StepMetrics::default();
        metrics.add("loss", 1.0);
        metrics.add("loss", 2.0 / 3.0);
        metrics.add_curve("ce_t", &[(6.0, 3.0), (0.0, 0.0)]);
        let json = metrics.to_json();
        assert_eq!(json["loss"], json!(0.833333));
        assert_eq!(json["ce_t"], json!([2.0, null]));
        let mut tensors = metrics.tensors()?;
        assert_eq!(StepMetrics::take(&mut tensors)?.means, metrics.means);
        assert!(tensors.is_empty());
        Ok(())
    }

    #[test]
    fn metrics_reach_other_processes_as_they_are() {
        let mut metrics = StepMetrics::default();
        metrics.add("loss", f64::NAN);
        metrics.add_curve("loss_t", &[(0.1, 3.0), (1.0 / 3.0, 0.0)]);
        let bytes = metrics.to_bytes();
        let found = StepMetrics::from_bytes(&bytes).expect("whole");
        assert_eq!(found.means["loss_t"], metrics.means["loss_t"]);
        assert_eq!(found.first_bad(), Some("loss"));
        for cut in 1..bytes.len() {
            let part = StepMetrics::from_bytes(&bytes[..cut]);
            assert!(part.is_none_or(|part| part.means.len() < 2), "{cut}");
        }
    }

    #[test]
    fn a_bad_value_is_named() {
        let mut metrics = StepMetrics::default();
        metrics.add("mse", 1.0);
        assert_eq!(metrics.first_bad(), None);
        metrics.add("perceptual", f64::NAN);
        assert_eq!(metrics.first_bad(), Some("perceptual"));
    }
}
