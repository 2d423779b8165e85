//! Ends a run that hangs: on a file server that no longer answers, or a GPU that never finishes.
//!
//! A thread looks at how long the step in progress takes. Before the first step, which may come
//! after hours of looking at files and encoding images, it looks at how long no sign of that came
//! ([`pulse`]), and so it does in a checkpoint and where the GPU's work is waited for. Only what
//! this process does itself counts, not what it waits for from others of its world: each of them
//! has its own watchdog, so the one to blame is named.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Context, Result, hinted};
use crate::telemetry::pulse;
use crate::world::World;

/// Watches a run from its beginning; dropping its last clone ends the watch.
#[derive(Debug, Clone)]
pub struct Watchdog(Arc<Watch>);

#[derive(Debug)]
struct Watch(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    phase: Phase,
    longest: Duration,
    ended: bool,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    /// Before the first step: the signs of work so far, and since when there was no other.
    Starting(u64, Instant),
    /// In a step, counted from 1, and its beginning.
    Step(u64, Instant),
    /// At what is done after a step: the signs of work so far, and since when there was no other.
    After(&'static str, u64, u64, Instant),
    /// Between two steps.
    Between,
}

impl Watchdog {
    /// Ends this process, and its world, when a step takes `timeout` longer than the longest
    /// before, or nothing is done for so long before the first.
    pub fn start(world: &World, timeout: Duration) -> Result<Self> {
        let state = Arc::new(Mutex::new(State {
            phase: Phase::Starting(pulse::beats(), Instant::now()),
            longest: Duration::ZERO,
            ended: false,
        }));
        let (watched, world) = (state.clone(), world.clone());
        thread::Builder::new()
            .name("rdpm-watchdog".to_string())
            .spawn(move || watch(&watched, &world, timeout))
            .context("could not start the thread that watches for a hanging step")?;
        Ok(Self(Arc::new(Watch(state))))
    }

    /// A step begins.
    pub fn begin(&self, step: u64) {
        self.0.lock().phase = Phase::Step(step, Instant::now());
    }

    /// After a step something is done that must not hang either.
    pub fn begin_after(&self, step: u64, what: &'static str) {
        self.0.lock().phase = Phase::After(what, step, pulse::beats(), Instant::now());
    }

    /// It has ended; whatever is done before the next one may take its time.
    pub fn end(&self) {
        let mut state = self.0.lock();
        if let Phase::Step(_, since) = state.phase {
            state.longest = state.longest.max(since.elapsed());
        }
        state.phase = Phase::Between;
    }
}

impl Watch {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.lock().ended = true;
    }
}

fn watch(state: &Mutex<State>, world: &World, timeout: Duration) {
    let pause = (timeout / 10).clamp(Duration::from_millis(10), Duration::from_secs(1));
    let mut looked = Instant::now();
    loop {
        thread::sleep(pause);
        // A process that was suspended has not hung.
        let was_suspended = looked.elapsed() > pause + Duration::from_secs(5);
        looked = Instant::now();
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.ended {
            return;
        }
        let longest = state.longest;
        let since = match &mut state.phase {
            Phase::Between => continue,
            Phase::Step(_, since) => since,
            Phase::Starting(seen, since) | Phase::After(_, _, seen, since) => {
                let beats = pulse::beats();
                if std::mem::replace(seen, beats) != beats {
                    *since = looked;
                }
                since
            }
        };
        if was_suspended {
            *since = looked;
        }
        let took = looked.saturating_duration_since(world.alone_since(*since));
        if took <= timeout + longest {
            continue;
        }
        let seconds = took.as_secs();
        let text = match state.phase {
            Phase::Step(step, _) => format!("step {step} has taken {seconds} s and does not end"),
            Phase::After(what, step, ..) => {
                format!("after step {step}, {what}: nothing was read or made for {seconds} s")
            }
            _ => format!("the first step does not begin: nothing was read or made for {seconds} s"),
        };
        world.end_process(hinted(
            text,
            "a disk, a file server or a GPU may not answer; go on with --resume, or allow more with --timeout",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It would end the tests.
    #[test]
    fn a_start_that_gets_on_may_take_longer_than_the_timeout() -> Result<()> {
        let timeout = Duration::from_secs(2);
        let watchdog = Watchdog::start(&World::alone(), timeout)?;
        let begin = Instant::now();
        while begin.elapsed() < 2 * timeout {
            pulse::beat();
            thread::sleep(Duration::from_millis(20));
        }
        watchdog.begin(1);
        watchdog.end();
        thread::sleep(timeout + timeout / 2);
        Ok(())
    }
}
