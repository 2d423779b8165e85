//! `--sweep KEY=VALUES`: evaluates several values of one drawing option.

use std::str::FromStr;

use image::RgbImage;

use crate::config::{is_guidance, is_temperature};
use crate::error::{Result, usage};
use crate::metrics::report::Evaluation;
use crate::metrics::sweep::{Series, plot};
use crate::sample::SampleOptions;

/// One key and its values.
#[derive(Debug, Clone, PartialEq)]
pub struct Sweep {
    pub key: Key,
    pub values: Vec<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    Cfg,
    Temperature,
    TopK,
    TopP,
}

impl Key {
    pub fn name(self) -> &'static str {
        match self {
            Key::Cfg => "cfg",
            Key::Temperature => "temperature",
            Key::TopK => "top-k",
            Key::TopP => "top-p",
        }
    }

    fn allows(self, value: f64) -> bool {
        value.is_finite()
            && match self {
                Key::Cfg => is_guidance(value),
                Key::Temperature => is_temperature(value),
                Key::TopK => value >= 1.0 && value.fract() == 0.0,
                Key::TopP => value > 0.0 && value <= 1.0,
            }
    }
}

impl FromStr for Sweep {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (key, values) = text
            .split_once('=')
            .ok_or("expected KEY=VALUES, as in cfg=0,1,2")?;
        let keys = [Key::Cfg, Key::Temperature, Key::TopK, Key::TopP];
        let key = keys
            .into_iter()
            .find(|k| k.name() == key)
            .ok_or("the key is one of cfg, temperature, top-k, top-p")?;
        let read = |value: &str| match value.trim().parse() {
            Ok(number) if key.allows(number) => Ok(number),
            _ => Err(format!("{}={value}: out of range", key.name())),
        };
        let values = values
            .split(',')
            .map(read)
            .collect::<std::result::Result<Vec<f64>, _>>()?;
        if let Some(i) = (1..values.len()).find(|&i| values[..i].contains(&values[i])) {
            return Err(format!("{}={}: given twice", key.name(), values[i]));
        }
        Ok(Self { key, values })
    }
}

impl Sweep {
    /// `options` with each of the values.
    ///
    /// Errors: an option that has no meaning without Gumbel noise.
    pub fn apply(&self, options: &SampleOptions) -> Result<Vec<SampleOptions>> {
        if self.key != Key::Cfg && !options.gumbel {
            return Err(usage(
                format!(
                    "--sweep {}: no meaning without Gumbel noise",
                    self.key.name()
                ),
                "draw with --gumbel",
            ));
        }
        let with = |value: &f64| {
            let mut options = *options;
            match self.key {
                Key::Cfg => options.cfg = *value,
                Key::Temperature => options.temperature = *value,
                Key::TopK => options.top_k = Some(*value as usize),
                Key::TopP => options.top_p = Some(*value),
            }
            options
        };
        Ok(self.values.iter().map(with).collect())
    }

    /// FID and IS of each value's evaluation; if neither was computed, all metrics that were.
    pub fn plot(&self, evaluations: &[Evaluation]) -> Result<RgbImage> {
        let names = || evaluations.iter().take(1).flat_map(|e| &e.metrics);
        let wanted = |name: &str| matches!(name, "fid" | "is");
        let any = names().any(|(name, _)| wanted(name));
        let series: Vec<Series> = names()
            .filter(|(name, _)| wanted(name) || !any)
            .map(|(name, _)| Series {
                metric: match *name {
                    "fid" => "FID".into(),
                    "is" => "Inception Score".into(),
                    other => other.into(),
                },
                points: self
                    .values
                    .iter()
                    .zip(evaluations)
                    .filter_map(|(&value, e)| Some((value, e.measurement(name)?.value)))
                    .collect(),
            })
            .collect();
        for one in &series {
            let bad = one.points.iter().filter(|(_, value)| !value.is_finite());
            let bad: Vec<String> = bad.map(|(setting, _)| setting.to_string()).collect();
            if !bad.is_empty() {
                let (metric, key) = (&one.metric, self.key.name());
                let settings = bad.join(", ");
                tracing::warn!("{metric} is not finite at {key} {settings}: not drawn");
            }
        }
        plot(self.key.name(), &series)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SampleConfig;
    use crate::metrics::report::Measurement;

    #[test]
    fn each_value_is_a_setting() -> Result<()> {
        let sweep: Sweep = "cfg=0,1.5".parse().expect("a sweep");
        let own = SampleOptions::from(&SampleConfig::default());
        let settings = sweep.apply(&own)?;
        assert_eq!((settings[0].cfg, settings[1].cfg), (0.0, 1.5));
        assert_eq!(
            SampleOptions {
                cfg: own.cfg,
                ..settings[1]
            },
            own
        );
        Ok(())
    }

    #[test]
    fn a_picture_has_a_panel_for_fid_and_one_for_the_inception_score() -> Result<()> {
        let sweep: Sweep = "cfg=0,2".parse().expect("a sweep");
        let evaluation = |fid: f64| {
            let measurement = |value| Measurement {
                value,
                ..Measurement::default()
            };
            let metrics = ["fid", "sfid", "is"].map(|name| (name, measurement(fid)));
            Evaluation {
                metrics: metrics.to_vec(),
                ..Evaluation::default()
            }
        };
        let picture = sweep.plot(&[evaluation(9.0), evaluation(7.0)])?;
        assert_eq!(picture.dimensions(), (1280, 420));
        Ok(())
    }

    #[test]
    fn what_is_no_setting_is_refused() {
        for text in [
            "cfg",
            "cfg=",
            "cfg=-1",
            "depth=3",
            "top-k=1.5",
            "top-p=2",
            "temperature=0",
            "cfg=1,2,1.0",
            "temperature=1e-60",
        ] {
            assert!(text.parse::<Sweep>().is_err(), "{text}");
        }
    }
}
