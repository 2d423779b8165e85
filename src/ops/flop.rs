//! Counts the FLOP of matmuls that convolutions and linear layers have executed in this process.
//! Benchmarks compute rates from it, so that they cannot count work that was not done.

use std::sync::atomic::{AtomicU64, Ordering};

static EXECUTED: AtomicU64 = AtomicU64::new(0);

/// Counts a matmul of [m,k] and [k,n]; a multiply-add counts as two.
pub(super) fn count(m: usize, k: usize, n: usize) {
    let flop = 2 * m as u64 * k as u64 * n as u64;
    EXECUTED.fetch_add(flop, Ordering::Relaxed);
}

/// FLOP executed so far.
pub fn executed() -> f64 {
    EXECUTED.load(Ordering::Relaxed) as f64
}
