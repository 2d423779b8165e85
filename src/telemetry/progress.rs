//! Progress: a bar on a terminal, an occasional line elsewhere.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{pulse, terminal};

/// All bars of this process; log lines are printed above them.
pub(super) static BARS: LazyLock<MultiProgress> =
    LazyLock::new(|| MultiProgress::with_draw_target(terminal::target()));

const BAR: &str = "{prefix} {wide_bar} {pos}/{len}  {msg}  {eta}";

/// Minimum time between lines if there is no terminal.
const QUIET: Duration = Duration::from_secs(10);

/// Progress of work that has `total` equal parts.
pub struct Progress {
    bar: ProgressBar,
    what: String,
    total: u64,
    begin: (Instant, u64),
    last_line: Instant,
}

impl Progress {
    /// `done` parts were done earlier (a resumed run) and do not count towards the speed.
    pub fn new(what: &str, total: u64, done: u64) -> Self {
        let bar = BARS.add(ProgressBar::new(total).with_position(done));
        bar.reset_eta();
        if let Ok(style) = ProgressStyle::with_template(BAR) {
            bar.set_style(style);
        }
        bar.set_prefix(what.to_string());
        Self {
            bar,
            what: what.to_string(),
            total,
            begin: (Instant::now(), done),
            last_line: Instant::now(),
        }
    }

    /// Sets the number of parts done. `status` is shown beside it ("loss 0.0812  156 img/s"); if
    /// empty, the previous text stays.
    pub fn set(&mut self, done: u64, status: &str) {
        pulse::beat();
        self.bar.set_position(done);
        if !status.is_empty() {
            self.bar.set_message(status.to_string());
        }
        if self.bar.is_hidden() && self.last_line.elapsed() >= QUIET {
            self.last_line = Instant::now();
            tracing::info!("{}", self.line(done, status));
        }
    }

    /// Like [`Progress::set`], and also prints a log line, on a terminal too.
    pub fn log(&mut self, done: u64, status: &str) {
        self.bar.set_position(done);
        self.bar.set_message(status.to_string());
        self.last_line = Instant::now();
        tracing::info!("{}", self.line(done, status));
    }

    /// Advances by one part.
    pub fn advance(&mut self) {
        self.set(self.bar.position() + 1, "");
    }

    fn line(&self, done: u64, status: &str) -> String {
        let (begin, before) = self.begin;
        let parts = done.saturating_sub(before).max(1);
        let left =
            begin.elapsed().as_secs_f64() / parts as f64 * self.total.saturating_sub(done) as f64;
        let mut line = format!("{} {done}/{}", self.what, self.total);
        if !status.is_empty() {
            line = format!("{line}  {status}");
        }
        format!("{line}  eta {}", clock(left))
    }
}

/// Removes the bar when the work ends or fails.
impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        BARS.remove(&self.bar);
    }
}

/// Formats seconds as 3:07 or 1:02:33.
pub fn clock(seconds: f64) -> String {
    let s = seconds.max(0.0).round() as u64;
    match s / 3600 {
        0 => format!("{}:{:02}", s / 60, s % 60),
        h => format!("{h}:{:02}:{:02}", s / 60 % 60, s % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_read_like_a_clock() {
        assert_eq!(clock(7.4), "0:07");
        assert_eq!(clock(187.0), "3:07");
        assert_eq!(clock(3753.0), "1:02:33");
    }

    #[test]
    fn a_line_says_what_how_far_and_how_long() {
        let progress = Progress::new("encode", 100, 40);
        let line = progress.line(50, "12 img/s");
        assert!(
            line.starts_with("encode 50/100  12 img/s  eta 0:0"),
            "{line}"
        );
    }
}
