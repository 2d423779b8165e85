//! Signs that this process gets on, for whoever watches that it does not hang: a file was read, a
//! part of some work was done. Counted, and nothing else.

use std::sync::atomic::{AtomicU64, Ordering};

static BEATS: AtomicU64 = AtomicU64::new(0);

/// Something was done.
pub fn beat() {
    BEATS.fetch_add(1, Ordering::Relaxed);
}

/// How often something was done; only whether it changes means anything.
pub fn beats() -> u64 {
    BEATS.load(Ordering::Relaxed)
}
