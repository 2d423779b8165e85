//! Logs, progress and the metric lines of a run.
