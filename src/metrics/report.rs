//! The results of an evaluation: a table for the terminal, and `report.json` with everything that a
//! value depends on.

use std::fmt::Write;

use serde::Serialize;
use serde_json::{Map, Value, json};

/// A metric's value, and what it was computed from.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Measurement {
    pub value: f64,
    /// 95 % confidence interval, by the delete-a-group jackknife.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<[f64; 2]>,
    /// Standard deviation over splits or subsets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deviation: Option<f64>,
    pub samples: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<usize>,
    pub dims: usize,
    pub network: String,
    pub weights: String,
    pub preprocess: String,
    /// What else the value depends on.
    #[serde(flatten)]
    pub details: Map<String, Value>,
}

/// A set of images or its statistics.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Set {
    pub path: String,
    pub kind: &'static str,
    /// A hash of the file, of all pixels in order, or of what a model's samples depend on.
    pub hash: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub images: Option<usize>,
    /// Width and height.
    pub size: Option<(u32, u32)>,
    /// How a model's samples were drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampling: Option<Value>,
}

/// The metrics of one set of samples, by name, in the order of the table.
#[derive(Debug, Clone, Default)]
pub struct Evaluation {
    pub samples: Set,
    pub metrics: Vec<(&'static str, Measurement)>,
    pub warnings: Vec<String>,
}

impl Evaluation {
    pub fn measurement(&self, name: &str) -> Option<&Measurement> {
        let found = self.metrics.iter().find(|(known, _)| *known == name);
        found.map(|(_, measurement)| measurement)
    }

    /// Warns of a Fréchet distance with so few images that a covariance is singular.
    pub fn warn_of_few(&mut self, name: &str, dims: usize, counts: [(Option<usize>, &str); 2]) {
        for (count, whose) in counts {
            if let Some(count) = count
                && count <= dims
            {
                self.warnings.push(format!(
                    "{name}: {count} {whose} in {dims} dimensions: the covariance is singular and the measurement far too high; \
                     compare it with figures of as many images only"
                ));
            }
        }
    }

    /// Warns of every value that is NaN or infinite; in the report's JSON it is null.
    pub fn warn_of_bad(&mut self) {
        let parts = |measurement: &Measurement| {
            let interval = measurement.interval.into_iter().flatten();
            [measurement.value]
                .into_iter()
                .chain(interval)
                .chain(measurement.deviation)
                .collect::<Vec<_>>()
        };
        for (name, measurement) in &self.metrics {
            if !parts(measurement).into_iter().all(f64::is_finite) {
                self.warnings.push(format!(
                    "{name} is not finite ({}): the features of {} are too large to be compared, or damaged",
                    measurement.value, self.samples.path
                ));
            }
        }
    }

    fn json(&self) -> Map<String, Value> {
        let metrics: Map<String, Value> = self
            .metrics
            .iter()
            .map(|(name, measurement)| (name.to_string(), json!(measurement)))
            .collect();
        Map::from_iter([
            ("samples".to_string(), json!(self.samples)),
            ("metrics".to_string(), Value::Object(metrics)),
            ("warnings".to_string(), json!(self.warnings)),
        ])
    }
}

/// One evaluation, or a sweep of them, against the same reference.
#[derive(Debug, Clone)]
pub struct Report {
    pub reference: Option<Set>,
    pub seed: u64,
    pub evaluations: Vec<Evaluation>,
}

impl Report {
    /// `samples`, `metrics` and `warnings` at the top level; for a sweep, a list of these as
    /// `points`.
    pub fn json(&self) -> Value {
        let mut report = Map::from_iter([
            ("format".to_string(), json!("rdpm-eval-fid/1")),
            ("version".to_string(), json!(env!("CARGO_PKG_VERSION"))),
            ("seed".to_string(), json!(self.seed)),
            ("reference".to_string(), json!(self.reference)),
        ]);
        match &self.evaluations[..] {
            [one] => report.extend(one.json()),
            points => {
                let points: Vec<_> = points.iter().map(|p| Value::Object(p.json())).collect();
                report.insert("points".to_string(), Value::Array(points));
            }
        }
        Value::Object(report)
    }

    /// The table for the terminal.
    pub fn table(&self) -> String {
        let mut text = String::new();
        if let Some(reference) = &self.reference {
            text += &line("reference", reference);
        }
        for evaluation in &self.evaluations {
            text += &line("samples", &evaluation.samples);
            let mut networks = Vec::new();
            for (_, measurement) in &evaluation.metrics {
                let (network, weights) = (&measurement.network, short(&measurement.weights));
                let network = format!(
                    "network    {network} ({weights}), {}\n",
                    measurement.preprocess
                );
                if !networks.contains(&network) {
                    networks.push(network);
                }
            }
            text += &networks.concat();
            if !networks.is_empty() {
                text += &format!(
                    "\n{:<14}{:>12}  {:<24}{:>9}{:>11}\n",
                    "metric", "value", "", "samples", "reference"
                );
            }
            for (name, measurement) in &evaluation.metrics {
                text += &row(name, measurement);
            }
            for warning in &evaluation.warnings {
                text += &format!("warning: {warning}\n");
            }
        }
        text
    }
}

fn row(name: &str, measurement: &Measurement) -> String {
    let spread = match (measurement.interval, measurement.deviation) {
        (Some([low, high]), _) => format!("[{low:.4}, {high:.4}] 95 %"),
        (None, Some(deviation)) => format!("± {deviation:.4}"),
        (None, None) => String::new(),
    };
    let count = |n: Option<usize>| n.map_or(String::new(), |n| n.to_string());
    let name = match name {
        "is" | "is_shuffled" | "precision" | "recall" | "kid" | "probe_top1" | "probe_prob" => {
            name.to_string()
        }
        _ => format!("{name} {}", measurement.dims),
    };
    format!(
        "{name:<14}{:>12.6}  {spread:<24}{:>9}{:>11}\n",
        measurement.value,
        count(measurement.samples),
        count(measurement.reference)
    )
}

fn line(what: &str, set: &Set) -> String {
    let mut text = format!("{what:<11}{}, {}", set.path, set.kind);
    // Writing to a string cannot fail.
    if let Some(images) = set.images {
        let _ = write!(text, ", {images} images");
    }
    if let Some((w, h)) = set.size {
        let _ = write!(text, " of {w}×{h}");
    }
    if let Some(Value::Object(sampling)) = &set.sampling {
        let shown = [
            "seed",
            "cfg",
            "cfg_schedule",
            "temperature",
            "top_k",
            "top_p",
        ];
        for key in shown {
            match sampling.get(key) {
                None | Some(Value::Null) => {}
                Some(Value::String(value)) => text += &format!(", {key} {value}"),
                Some(value) => text += &format!(", {key} {value}"),
            }
        }
    }
    let name = set.name.as_deref().unwrap_or("unnamed");
    let _ = writeln!(text, " ({name}, {})", short(&set.hash));
    text
}

/// Enough of a digest to tell files apart.
fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluation(fid: f64) -> Evaluation {
        let measurement = Measurement {
            value: fid,
            interval: Some([fid - 1.0, fid + 1.0]),
            samples: Some(50),
            dims: 2048,
            ..Measurement::default()
        };
        Evaluation {
            metrics: vec![("fid", measurement)],
            warnings: vec!["few".into()],
            ..Evaluation::default()
        }
    }

    #[test]
    fn a_figure_that_is_not_finite_is_shown_as_such_and_null_for_machines() {
        for bad in [f64::NAN, f64::INFINITY] {
            let mut found = evaluation(7.5);
            found.samples.path = "some/samples".into();
            found.metrics[0].1.value = bad;
            found.warn_of_bad();
            let report = Report {
                reference: None,
                seed: 3,
                evaluations: vec![found],
            };
            assert_eq!(report.json()["metrics"]["fid"]["value"], Value::Null);
            let (table, shown) = (report.table(), format!("{bad}"));
            assert!(table.contains("warning: fid is not finite"), "{table}");
            assert!(
                table.contains(&shown) && table.contains("some/samples"),
                "{table}"
            );
        }
        let mut good = evaluation(7.5);
        good.warn_of_bad();
        assert_eq!(good.warnings, ["few"]);
    }

    #[test]
    fn one_evaluation_stands_at_the_top_and_a_sweep_in_points() {
        let mut report = Report {
            reference: None,
            seed: 3,
            evaluations: vec![evaluation(7.5)],
        };
        assert_eq!(report.json()["metrics"]["fid"]["value"], 7.5);
        assert_eq!(report.json()["metrics"]["fid"]["interval"][1], 8.5);
        let table = report.table();
        assert!(
            table.contains("fid 2048") && table.contains("7.500000"),
            "{table}"
        );
        assert!(table.contains("warning: few"));
        // Each network is listed once.
        let mut other = evaluation(1.0).metrics;
        other[0].1.network = "clip".into();
        report.evaluations[0].metrics.extend(other);
        report.evaluations[0]
            .metrics
            .extend(evaluation(2.0).metrics);
        let table = report.table();
        let lines = table.lines().filter(|line| line.starts_with("network"));
        assert_eq!(lines.count(), 2, "{table}");
        report.evaluations.push(evaluation(9.0));
        assert_eq!(report.json()["points"][1]["metrics"]["fid"]["value"], 9.0);
    }
}
