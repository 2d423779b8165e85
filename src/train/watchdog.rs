//! Ends a run that hangs: on a file server that no longer answers, or a GPU that never finishes.
//!
//! A thread looks at how long the step in progress takes. Only what this process does itself
//! counts, not what it waits for from others of its world: each of them has its own watchdog, so
//! the one to blame is named.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Context, Result, hinted};
use crate::world::World;

/// Watches the steps of a run; dropping it ends the watch.
pub struct Watchdog(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// The step in progress, counted from 1, and its beginning; none between steps.
    step: Option<(u64, Instant)>,
    longest: Duration,
    ended: bool,
}

impl Watchdog {
    /// Ends this process, and its world, when a step takes `timeout` longer than the longest
    /// before.
    pub fn start(world: &World, timeout: Duration) -> Result<Self> {
        let state = Arc::new(Mutex::new(State {
            step: None,
            longest: Duration::ZERO,
            ended: false,
        }));
        let (watched, world) = (state.clone(), world.clone());
        thread::Builder::new()
            .name("rdpm-watchdog".to_string())
            .spawn(move || watch(&watched, &world, timeout))
            .context("could not start the thread that watches for a hanging step")?;
        Ok(Self(state))
    }

    /// A step begins.
    pub fn begin(&self, step: u64) {
        self.lock().step = Some((step, Instant::now()));
    }

    /// It has ended; whatever is done before the next one may take its time.
    pub fn end(&self) {
        let mut state = self.lock();
        if let Some((_, since)) = state.step.take() {
            state.longest = state.longest.max(since.elapsed());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watchdog {
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
        let Some((step, since)) = &mut state.step else {
            continue;
        };
        if was_suspended {
            *since = looked;
        }
        let since = world.alone_since(*since);
        let (step, took) = (*step, looked.saturating_duration_since(since));
        if took > timeout + state.longest {
            let text = format!(
                "step {step} has taken {} s and does not end",
                took.as_secs()
            );
            world.end_process(hinted(
                text,
                "a disk, a file server or a GPU may not answer; go on with --resume, or allow more with --timeout",
            ));
        }
    }
}
