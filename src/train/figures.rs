//! Figures of the log: means over the steps since the last line, each a scalar or one value a timestep.
//!
//! They are part of a checkpoint, so that a resumed run writes the line that the uninterrupted one writes.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor};
use serde_json::{Map, Value, json};

/// Weighted sums by name; a scalar has one entry, a curve over t has T.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    means: BTreeMap<String, Vec<Mean>>,
    /// Scalars that still lie on the device.
    pending: Vec<(String, Tensor)>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Mean {
    sum: f64,
    weight: f64,
}

impl Figures {
    /// One more value of the scalar `name`.
    pub fn add(&mut self, name: &str, value: f64) {
        self.add_curve(name, &[(value, 1.0)]);
    }

    /// One more value of the scalar `name`, f32 or f64, which stays on its device until [`Figures::fetch`].
    pub fn add_scalar(&mut self, name: &str, value: &Tensor) {
        self.pending.push((name.to_string(), value.detach()));
    }

    /// Brings what lies on the device to the host, all of it in one wait.
    pub fn fetch(&mut self) -> Result<()> {
        let (names, scalars): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.pending).into_iter().unzip();
        if names.is_empty() {
            return Ok(());
        }
        let wide = |scalar: &Tensor| scalar.to_dtype(DType::F64)?.reshape(1);
        let scalars = scalars.iter().map(wide).collect::<Result<Vec<_>>>()?;
        let values = Tensor::cat(&scalars, 0)?.to_vec1::<f64>()?;
        for (name, value) in names.iter().zip(values) {
            self.add(name, value);
        }
        Ok(())
    }

    /// One more (sum, weight) of every entry of the curve `name`.
    pub fn add_curve(&mut self, name: &str, sums: &[(f64, f64)]) {
        let entry = self.means.entry(name.to_string()).or_default();
        entry.resize(sums.len().max(entry.len()), Mean::default());
        for (mean, (sum, weight)) in entry.iter_mut().zip(sums) {
            mean.sum += sum;
            mean.weight += weight;
        }
    }

    pub fn merge(&mut self, other: &Figures) {
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

    /// The means as JSON; an entry that saw nothing is null.
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

    /// What [`Figures::tensors`] wrote, taken out of `tensors`.
    pub fn take(tensors: &mut BTreeMap<String, Tensor>) -> Result<Self> {
        let names: Vec<String> = tensors
            .keys()
            .filter(|n| n.starts_with(PREFIX))
            .cloned()
            .collect();
        let mut figures = Figures::default();
        for name in names {
            let Some(tensor) = tensors.remove(&name) else {
                continue;
            };
            let sums: Vec<(f64, f64)> = tensor
                .to_vec2::<f64>()?
                .iter()
                .map(|row| (row[0], row[1]))
                .collect();
            figures.add_curve(&name[PREFIX.len()..], &sums);
        }
        Ok(figures)
    }
}

const PREFIX: &str = "interval.";

impl Mean {
    fn value(&self) -> f64 {
        self.sum / self.weight
    }
}

/// Six significant digits: what a log needs and no more.
pub fn round(x: f64) -> f64 {
    format!("{x:.5e}").parse().unwrap_or(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_weighted_and_survive_a_checkpoint() -> Result<()> {
        let mut figures = Figures::default();
        figures.add("loss", 1.0);
        figures.add("loss", 2.0 / 3.0);
        figures.add_curve("ce_t", &[(6.0, 3.0), (0.0, 0.0)]);
        let json = figures.to_json();
        assert_eq!(json["loss"], json!(0.833333));
        assert_eq!(json["ce_t"], json!([2.0, null]));
        let mut tensors = figures.tensors()?;
        assert_eq!(Figures::take(&mut tensors)?.means, figures.means);
        assert!(tensors.is_empty());
        Ok(())
    }

    #[test]
    fn a_bad_value_is_named() {
        let mut figures = Figures::default();
        figures.add("mse", 1.0);
        assert_eq!(figures.first_bad(), None);
        figures.add("perceptual", f64::NAN);
        assert_eq!(figures.first_bad(), Some("perceptual"));
    }
}
