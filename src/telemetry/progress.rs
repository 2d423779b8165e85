//! Progress: a bar on a terminal, a line now and then elsewhere.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::terminal;

/// All bars of this process; log lines go between them.
pub(super) static BARS: LazyLock<MultiProgress> =
    LazyLock::new(|| MultiProgress::with_draw_target(terminal::target()));

const BAR: &str = "{prefix} {wide_bar} {pos}/{len}  {msg}  {eta}";

/// How long a line-wise log stays silent.
const QUIET: Duration = Duration::from_secs(10);

/// One piece of work of `total` equal parts.
pub struct Progress {
    bar: ProgressBar,
    what: String,
    total: u64,
    begin: (Instant, u64),
    last_line: Instant,
}

impl Progress {
    /// `done` parts were done before (a resumed run): they do not count for the pace.
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

    /// `done` parts are done; `figures` is what to say of them ("loss 0.0812  156 img/s"), empty for what was said.
    pub fn set(&mut self, done: u64, figures: &str) {
        self.bar.set_position(done);
        if !figures.is_empty() {
            self.bar.set_message(figures.to_string());
        }
        if self.bar.is_hidden() && self.last_line.elapsed() >= QUIET {
            self.last_line = Instant::now();
            tracing::info!("{}", self.line(done, figures));
        }
    }

    /// As [`Progress::set`], with a line of the log of its own, on a terminal too.
    pub fn log(&mut self, done: u64, figures: &str) {
        self.bar.set_position(done);
        self.bar.set_message(figures.to_string());
        self.last_line = Instant::now();
        tracing::info!("{}", self.line(done, figures));
    }

    /// One part more is done.
    pub fn advance(&mut self) {
        self.set(self.bar.position() + 1, "");
    }

    fn line(&self, done: u64, figures: &str) -> String {
        let (begin, before) = self.begin;
        let parts = done.saturating_sub(before).max(1);
        let left =
            begin.elapsed().as_secs_f64() / parts as f64 * self.total.saturating_sub(done) as f64;
        let mut line = format!("{} {done}/{}", self.what, self.total);
        if !figures.is_empty() {
            line = format!("{line}  {figures}");
        }
        format!("{line}  eta {}", clock(left))
    }
}

/// The bar goes when its work does, finished or failed.
impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        BARS.remove(&self.bar);
    }
}

/// Seconds as 3:07 or 1:02:33.
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
