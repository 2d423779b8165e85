//! Logs, progress and the metric lines of a run. stderr carries progress, stdout results.

pub mod curves;
mod log;
mod metrics;
mod progress;
pub mod rates;
mod terminal;

pub use log::{Guard, Options, init};
pub use metrics::MetricsLog;
pub use progress::Progress;
pub use rates::{Rates, Work};
