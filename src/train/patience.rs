//! What becomes of a run whose checkpoints cannot be saved because the disk is full: it trains on,
//! tries again each minute, and ends only when its patience does.

use std::time::{Duration, Instant};

use crate::error::{Error, Result, is_disk_full, rehinted};

/// Between two tries; shorter where the patience is.
const PAUSE: Duration = Duration::from_secs(60);

/// Tries in the whole patience at least.
const TRIES: u32 = 10;

/// How long the disk was full, and how long it may be.
#[derive(Debug)]
pub struct Patience {
    allowed: Duration,
    /// Since the first failed try, and since the last.
    failing: Option<(Instant, Instant)>,
}

impl Patience {
    pub fn new(allowed: Duration) -> Self {
        Self {
            allowed,
            failing: None,
        }
    }

    /// Between two tries.
    pub fn pause(&self) -> Duration {
        PAUSE.min(self.allowed / TRIES)
    }

    /// Whether the last try failed.
    pub fn is_failing(&self) -> bool {
        self.failing.is_some()
    }

    /// Whether the last try failed, and it is time for another.
    pub fn wants_try(&self) -> bool {
        let waited = |(_, last): (Instant, Instant)| last.elapsed() >= self.pause();
        self.failing.is_some_and(waited)
    }

    /// A checkpoint was saved after `step`.
    pub fn saved(&mut self, step: u64) {
        if let Some((first, _)) = self.failing.take() {
            tracing::info!(
                "saved after step {step}: the disk has room again, after {} s",
                first.elapsed().as_secs()
            );
        }
    }

    /// A try failed after `step`.
    ///
    /// Errors: `error`, if it is another than a full disk, or the patience has ended.
    pub fn failed(&mut self, step: u64, error: Error) -> Result<()> {
        let now = Instant::now();
        let first = self.failing.map_or(now, |(first, _)| first);
        let left = self.allowed.saturating_sub(now - first);
        if !is_disk_full(&error) {
            return Err(error);
        }
        if left.is_zero() {
            let hint = "free some space, and go on with --resume: the checkpoint before is whole; \
                --save-patience waits longer";
            return Err(rehinted(&error, hint));
        }
        self.failing = Some((first, now));
        tracing::warn!(
            "step {step} is not saved: {error:#}; the run goes on, tries again every {} s, and ends if that fails for {} s more",
            self.pause().as_secs_f64().ceil(),
            left.as_secs()
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{disk_full, hinted, report};

    #[test]
    fn a_full_disk_is_tried_again_until_the_patience_ends() -> Result<()> {
        let mut patience = Patience::new(Duration::from_millis(200));
        assert!(!patience.is_failing() && !patience.wants_try());
        patience.failed(3, disk_full("no room", ""))?;
        assert!(patience.is_failing() && !patience.wants_try());
        std::thread::sleep(Duration::from_millis(30));
        assert!(patience.wants_try());
        patience.failed(4, disk_full("no room", ""))?;
        std::thread::sleep(Duration::from_millis(200));
        let (text, code) = report(&patience.failed(5, disk_full("no room", "")).unwrap_err());
        assert!(
            text.contains("no room") && text.contains("--save-patience"),
            "{text}"
        );
        assert_eq!(code, 1);
        patience.saved(6);
        assert!(!patience.is_failing());
        patience.failed(7, disk_full("no room", ""))
    }

    #[test]
    fn another_error_or_no_patience_ends_the_run_at_once() {
        let mut patience = Patience::new(Duration::from_secs(60));
        assert!(patience.failed(3, hinted("damaged", "")).is_err());
        let mut none = Patience::new(Duration::ZERO);
        assert!(none.failed(3, disk_full("no room", "")).is_err());
    }

    #[test]
    fn tries_come_each_minute_of_half_an_hour() {
        let pause = |seconds| {
            Patience::new(Duration::from_secs(seconds))
                .pause()
                .as_secs()
        };
        assert_eq!((pause(1800), pause(86_400), pause(50)), (60, 60, 5));
    }
}
