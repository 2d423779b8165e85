//! Logged metrics: means over the steps since the last log line, each a scalar or one value per
//! timestep.
//!
//! They are part of a checkpoint, so that a resumed run writes the same line as an uninterrupted
//! one.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor};
use serde_json::{Map, Value, json};

use crate::ops::read_scalars;

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
    fn a_bad_value_is_named() {
        let mut metrics = StepMetrics::default();
        metrics.add("mse", 1.0);
        assert_eq!(metrics.first_bad(), None);
        metrics.add("perceptual", f64::NAN);
        assert_eq!(metrics.first_bad(), Some("perceptual"));
    }
}
