//! The FLOP of matrix products that convolutions and linear layers have executed in this process: what a benchmark's
//! rate is made of, so that it cannot count work that was not done.

use std::sync::atomic::{AtomicU64, Ordering};

static EXECUTED: AtomicU64 = AtomicU64::new(0);

/// A product of [m,k] and [k,n] runs: a multiply-add counts as two.
pub(super) fn count(m: usize, k: usize, n: usize) {
    let flop = 2 * m as u64 * k as u64 * n as u64;
    EXECUTED.fetch_add(flop, Ordering::Relaxed);
}

/// FLOP so far.
pub fn executed() -> f64 {
    EXECUTED.load(Ordering::Relaxed) as f64
}
