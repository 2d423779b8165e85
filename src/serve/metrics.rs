//! Counters, in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

#[derive(Debug, Default)]
pub struct Metrics {
    /// By route and status.
    answers: Mutex<BTreeMap<(&'static str, u16), u64>>,
    pub images: AtomicU64,
    pub reconstructions: AtomicU64,
    pub cancelled: AtomicU64,
    batches: AtomicU64,
    /// Of all batches, and the time they took.
    batched: AtomicU64,
    microseconds: AtomicU64,
}

/// What waits, when it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    pub requests: usize,
    pub images: usize,
}

impl Metrics {
    pub fn answered(&self, route: &'static str, status: u16) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        *answers.entry((route, status)).or_default() += 1;
    }

    pub fn batch(&self, images: usize, took: Duration) {
        self.batches.fetch_add(1, Relaxed);
        self.batched.fetch_add(images as u64, Relaxed);
        let microseconds = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.microseconds.fetch_add(microseconds, Relaxed);
    }

    pub fn text(&self, waiting: Waiting) -> String {
        let mut text = String::new();
        let mut put = |name: &str, kind: &str, help: &str, values: &[(String, f64)]| {
            // Writing into a string does not fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in values {
                let _ = writeln!(text, "{name}{labels} {value}");
            }
        };
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |((route, status), count): (&(&str, u16), &u64)| {
            let labels = format!("{{route=\"{route}\",code=\"{status}\"}}");
            (labels, *count as f64)
        };
        let answers: Vec<_> = answers.iter().map(of).collect();
        let requests = "rdpm_http_requests_total";
        put(
            requests,
            "counter",
            "Answers by route and status.",
            &answers,
        );
        let count = |counter: &AtomicU64| counter.load(Relaxed) as f64;
        let mut counter = |name: &str, help: &str, value: f64| {
            put(name, "counter", help, &[(String::new(), value)]);
        };
        counter("rdpm_images_total", "Images drawn.", count(&self.images));
        counter(
            "rdpm_reconstructions_total",
            "Images reconstructed.",
            count(&self.reconstructions),
        );
        counter(
            "rdpm_cancelled_total",
            "Requests whose client left before the answer.",
            count(&self.cancelled),
        );
        counter("rdpm_batches_total", "Batches drawn.", count(&self.batches));
        counter(
            "rdpm_batch_images_total",
            "Images at the start of all batches.",
            count(&self.batched),
        );
        counter(
            "rdpm_batch_seconds_total",
            "Time that batches took.",
            count(&self.microseconds) / 1e6,
        );
        let mut gauge = |name: &str, help: &str, value: f64| {
            put(name, "gauge", help, &[(String::new(), value)]);
        };
        let (requests, images) = (waiting.requests as f64, waiting.images as f64);
        gauge("rdpm_waiting_requests", "Requests in the queue.", requests);
        gauge("rdpm_waiting_images", "Images in the queue.", images);
        gauge(
            "process_resident_memory_bytes",
            "Memory in use.",
            resident(),
        );
        text
    }
}

/// Resident memory in bytes, as Linux counts it; 0 where there is no /proc.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok());
    kib.map_or(0.0, |kib: f64| kib * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_has_a_type_and_a_value() {
        let metrics = Metrics::default();
        metrics.answered("/v1/images", 429);
        metrics.answered("/v1/images", 429);
        metrics.batch(5, Duration::from_millis(1500));
        let text = metrics.text(Waiting {
            requests: 2,
            images: 7,
        });
        for line in [
            "rdpm_http_requests_total{route=\"/v1/images\",code=\"429\"} 2",
            "rdpm_batch_images_total 5",
            "rdpm_batch_seconds_total 1.5",
            "rdpm_waiting_images 7",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        let of = |start: &str| text.lines().filter(|line| line.starts_with(start)).count();
        assert_eq!(of("# TYPE "), 10);
        assert_eq!(of("# HELP "), of("# TYPE "));
        assert!(resident() > 1e6);
    }
}
