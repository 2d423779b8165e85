//! Logs, progress and the metrics file of a run. Progress goes to stderr, results to stdout.

pub mod curves;
mod log;
mod metrics;
mod progress;
pub mod pulse;
pub mod rates;
pub mod shell;
mod tensorboard;
mod terminal;

pub use log::{Guard, Options, init};
pub use metrics::MetricsLog;
pub use progress::Progress;
pub use rates::{Rates, Work};
pub use tensorboard::EventLog;
