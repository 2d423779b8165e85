//! The metrics of a run by column, which take about as much memory as their file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Result, hinted};

/// More than any run's metrics.
pub(super) const LARGEST: u64 = 512 << 20;

/// All lines of a file of metrics.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    pub lines: Vec<Line>,
    columns: BTreeMap<String, Column>,
    /// The file ends within a line.
    pub is_torn: bool,
    /// Lines that are no metrics.
    pub damaged: usize,
}

/// A line of the metrics, without its figures.
#[derive(Debug)]
pub(super) struct Line {
    pub step: u64,
    /// Seconds of training up to here, if the run says how fast it was.
    pub seconds: Option<f64>,
}

/// The values of a metric, each with the place of its line. What is not finite is NaN.
#[derive(Debug, Default)]
struct Column {
    single: Vec<(u32, f64)>,
    over_t: Vec<(u32, Box<[f64]>)>,
}

impl Metrics {
    /// Errors: there is no such file, it cannot be read, or is larger than [`LARGEST`].
    pub fn read(path: &Path) -> Result<Self> {
        let cannot = |e| hinted(format!("cannot read {}: {e}", path.display()), "");
        let size = fs::metadata(path).map_err(cannot)?.len();
        if size > LARGEST {
            return Err(hinted(
                format!(
                    "{} has {} MiB, at most {}",
                    path.display(),
                    size >> 20,
                    LARGEST >> 20
                ),
                "it is no file of metrics",
            ));
        }
        let mut file = BufReader::new(File::open(path).map_err(cannot)?);
        let (mut metrics, mut line) = (Self::default(), Vec::new());
        while file.read_until(b'\n', &mut line).map_err(cannot)? > 0 {
            metrics.add(&line);
            line.clear();
        }
        Ok(metrics)
    }

    fn add(&mut self, line: &[u8]) {
        let found = serde_json::from_slice::<Map<String, Value>>(line).ok();
        let step = found.as_ref().and_then(|found| found.get("step")?.as_u64());
        match (found, step) {
            (Some(found), Some(step)) => {
                self.forget_from(step);
                // A file within the limit has fewer lines.
                let place = self.lines.len() as u32;
                self.lines.push(Line {
                    step,
                    seconds: None,
                });
                for (name, value) in found {
                    self.columns.entry(name).or_default().add(place, &value);
                }
            }
            _ if !line.ends_with(b"\n") => self.is_torn = true,
            _ if line.iter().all(u8::is_ascii_whitespace) => {}
            _ => self.damaged += 1,
        }
    }

    /// What was logged again counts, as where a copy was continued.
    fn forget_from(&mut self, step: u64) {
        let kept = self.lines.partition_point(|line| line.step < step);
        if kept == self.lines.len() {
            return;
        }
        self.lines.truncate(kept);
        for column in self.columns.values_mut() {
            column.truncate(kept as u32);
        }
    }

    /// Whether any line has this metric.
    pub fn has(&self, name: &str) -> bool {
        let column = self.columns.get(name);
        column.is_some_and(|column| !(column.single.is_empty() && column.over_t.is_empty()))
    }

    /// Names of all metrics, and whether each has values over t.
    pub fn names(&self) -> impl Iterator<Item = (&str, bool)> {
        let names = self.columns.keys().filter(|name| self.has(name));
        names.map(|name| (name.as_str(), !self.columns[name].over_t.is_empty()))
    }

    /// The lines that have a number for this metric, with it; none where it is not finite.
    pub fn single(
        &self,
        name: &str,
    ) -> impl DoubleEndedIterator<Item = (&Line, Option<f64>)> + use<'_> {
        let found = self.columns.get(name).map_or(&[][..], |c| &c.single);
        found
            .iter()
            .map(|(place, value)| (&self.lines[*place as usize], finite(*value)))
    }

    /// The lines that have values over t for this metric, with them; NaN is what is not finite.
    pub fn over_t(&self, name: &str) -> impl DoubleEndedIterator<Item = (&Line, &[f64])> + use<'_> {
        let found = self.columns.get(name).map_or(&[][..], |c| &c.over_t);
        found
            .iter()
            .map(|(place, values)| (&self.lines[*place as usize], &**values))
    }

    /// Adds up the time between lines from their speed with batches of this size, which leaves out
    /// pauses.
    pub fn add_seconds(&mut self, batch: f64) {
        let rates = self.columns.get("images_per_second");
        let mut rates = rates.map_or(&[][..], |column| &column.single).iter();
        let mut next = rates.next();
        let (mut before, mut total, mut rate) = (0, 0.0, None);
        for (place, line) in (0..).zip(&mut self.lines) {
            if let Some((at, found)) = next
                && *at == place
            {
                rate = Some(*found).filter(|r| *r > 0.0).or(rate);
                next = rates.next();
            }
            if let Some(rate) = rate {
                total += (line.step - before) as f64 * batch / rate;
                line.seconds = finite(total);
            }
            before = line.step;
        }
    }
}

impl Column {
    /// Anything but numbers, null and lists of them is no metric.
    fn add(&mut self, place: u32, value: &Value) {
        let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
        match value {
            Value::Array(values) => {
                let values = values.iter().map(number).collect();
                self.over_t.push((place, values));
            }
            Value::Number(_) | Value::Null => self.single.push((place, number(value))),
            _ => {}
        }
    }

    fn truncate(&mut self, lines: u32) {
        let kept = self.single.partition_point(|(place, _)| *place < lines);
        self.single.truncate(kept);
        let kept = self.over_t.partition_point(|(place, _)| *place < lines);
        self.over_t.truncate(kept);
    }
}

pub(super) fn finite(x: f64) -> Option<f64> {
    x.is_finite().then_some(x)
}
