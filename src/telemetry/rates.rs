//! The rate that a timing implies, in FLOP/s or bytes/s, compared with the best rate that this
//! machine reaches in the same run.
//!
//! A rate above [`SLACK`] times the best is impossible: too little was timed or too much was
//! counted. A benchmark prints it with both rates and fails at the end.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pulp::{Arch, Simd, WithSimd};

use crate::error::{Result, hinted};

/// How far a rate may exceed the measured best: clocks and other processes change during a run.
const SLACK: f64 = 1.1;

/// How often the best rate is measured again before a rate is called impossible.
const AGAIN: usize = 5;

/// Work that was executed, all threads together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Work {
    /// In f32; a multiply-add counts as two.
    Flop(f64),
    /// In f64, with half as many elements per vector.
    DoubleFlop(f64),
    /// Bytes read and written, each counted once.
    Bytes(f64),
}

/// The rates of a benchmark run.
pub struct Rates {
    /// Peak FLOP/s in f32: multiply-adds in registers on all threads.
    flop: f64,
    /// Bytes/s by working-set size, because each cache level has its own rate.
    bytes: BTreeMap<u64, f64>,
    impossible: Vec<String>,
}

impl Rates {
    /// Measures the peak multiply-add rate of the current pool's threads.
    pub fn measure() -> Self {
        Self {
            flop: multiply_adds(),
            bytes: BTreeMap::new(),
            impossible: Vec::new(),
        }
    }

    /// FLOP/s in f32 that this machine's threads reach together.
    pub fn flop(&self) -> f64 {
        self.flop
    }

    /// The rate for `work` done in `seconds`, and its share of the best rate; records it if it is
    /// impossible.
    pub fn of(&mut self, name: &str, work: Work, seconds: f64) -> String {
        let (amount, unit) = match work {
            Work::Flop(n) | Work::DoubleFlop(n) => (n, "GFLOP/s"),
            Work::Bytes(n) => (n, "GB/s"),
        };
        let rate = amount / seconds;
        let mut best = self.best(work);
        for _ in 0..AGAIN {
            if rate <= SLACK * best {
                break;
            }
            self.measure_again(work);
            best = self.best(work);
        }
        let (rate, best) = (rate / 1e9, best / 1e9);
        let share = 100.0 * rate / best;
        if rate <= SLACK * best {
            return format!("{rate:.1} {unit}, {share:.0} % of the best");
        }
        let told = format!("{rate:.1} {unit}, but this machine reaches {best:.1}");
        self.impossible.push(format!("{name}: {told}"));
        told
    }

    /// Errors: a rate was higher than the machine can reach.
    pub fn verdict(self) -> Result<()> {
        if self.impossible.is_empty() {
            return Ok(());
        }
        Err(hinted(
            format!(
                "rates above {SLACK} times the best one measured: {}",
                self.impossible.join("; ")
            ),
            "what is timed and what is counted are not the same work",
        ))
    }

    fn best(&mut self, work: Work) -> f64 {
        match work {
            Work::Flop(_) => self.flop,
            Work::DoubleFlop(_) => self.flop / 2.0,
            Work::Bytes(n) => *self.bytes.entry(size(n)).or_insert_with(|| moved(size(n))),
        }
    }

    fn measure_again(&mut self, work: Work) {
        match work {
            Work::Flop(_) | Work::DoubleFlop(_) => self.flop = self.flop.max(multiply_adds()),
            Work::Bytes(n) => {
                let best = self.best(work).max(moved(size(n)));
                self.bytes.insert(size(n), best);
            }
        }
    }
}

/// Rounds down to a power of two between 64 KiB and 256 MiB, which is beyond all caches.
fn size(bytes: f64) -> u64 {
    1 << (bytes.max(1.0).log2() as u32).clamp(16, 28)
}

/// The best of a few runs of `work` on every thread, in units/s; `units` counts all threads' work
/// together.
fn best_rate(units: f64, work: impl Fn() + Sync) -> f64 {
    let (begin, mut best) = (Instant::now(), 0f64);
    let mut runs = 0;
    while runs < 5 || begin.elapsed() < Duration::from_millis(60) {
        let run = Instant::now();
        rayon::broadcast(|_| work());
        best = best.max(units / run.elapsed().as_secs_f64());
        runs += 1;
    }
    best
}

/// FLOP/s of multiply-adds on register operands.
fn multiply_adds() -> f64 {
    const ROUNDS: usize = 1 << 17;
    let flop = Arch::new().dispatch(MultiplyAdds(0)) * ROUNDS as f64;
    best_rate(flop * rayon::current_num_threads() as f64, || {
        Arch::new().dispatch(MultiplyAdds(ROUNDS));
    })
}

/// Enough independent chains to hide the latency. Returns the FLOP of a round.
struct MultiplyAdds(usize);

impl WithSimd for MultiplyAdds {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> f64 {
        const CHAINS: usize = 12;
        let (x, y) = (
            s.splat_f32s(black_box(0.999)),
            s.splat_f32s(black_box(1e-3)),
        );
        let mut sums = [y; CHAINS];
        for _ in 0..self.0 {
            for sum in &mut sums {
                *sum = s.mul_add_f32s(*sum, x, y);
            }
        }
        black_box(sums);
        (CHAINS * 2 * S::F32_LANES) as f64
    }
}

/// Bytes/s, read plus written, of a copy or of a search over as many bytes, whichever is faster.
fn moved(bytes: u64) -> f64 {
    let threads = rayon::current_num_threads();
    let floats = bytes as usize / size_of::<f32>() / threads;
    let rounds = (1 << 20) / (floats + 1) + 1;
    let total = (rounds * threads * floats * size_of::<f32>()) as f64;
    // One buffer per thread.
    let buffers: Vec<_> = (0..threads)
        .map(|_| Mutex::new(vec![1f32; floats]))
        .collect();
    let of_thread = || {
        let place = rayon::current_thread_index().unwrap_or(0) % threads;
        buffers[place]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    };
    let copied = best_rate(total, || {
        let mut buffer = of_thread();
        let (from, to) = buffer.split_at_mut(floats / 2);
        for _ in 0..rounds {
            to[..from.len()].copy_from_slice(black_box(from));
            black_box(&mut *to);
        }
    });
    let searched = best_rate(total, || {
        let buffer = of_thread();
        for _ in 0..rounds {
            black_box(crate::ops::largest(black_box(&buffer)));
        }
    });
    copied.max(searched)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::report;

    #[test]
    fn a_figure_that_was_divided_by_ten_is_refused() {
        let mut rates = Rates::measure();
        // Half of the FLOP that the machine does in a second, and the bytes of a copy at full
        // speed.
        let (flop, bytes) = (rates.flop() / 2.0, 1e8);
        let copied = bytes / rates.best(Work::Bytes(bytes));
        rates.of("matmul", Work::Flop(flop), 1.0);
        rates.of("eigenvalues", Work::DoubleFlop(flop / 2.0), 1.0);
        rates.of("copy", Work::Bytes(bytes), copied);
        assert!(rates.impossible.is_empty(), "{:?}", rates.impossible);
        for (name, work, seconds) in [
            ("matmul", Work::Flop(flop), 1.0),
            ("eigenvalues", Work::DoubleFlop(flop / 2.0), 1.0),
            ("copy", Work::Bytes(bytes), copied),
        ] {
            let told = rates.of(name, work, seconds / 10.0);
            assert!(told.contains("but this machine reaches"), "{told}");
        }
        let (text, code) = report(&rates.verdict().expect_err("three impossible rates"));
        for name in ["matmul", "eigenvalues", "copy"] {
            assert!(text.contains(name), "{text}");
        }
        assert_eq!(code, 1);
    }
}
