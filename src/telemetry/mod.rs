//! Logs, progress and the metric lines of a run.

pub mod curves;
