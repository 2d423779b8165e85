//! Signals that ask a run to stop: SIGINT, SIGTERM, SIGHUP (the terminal has closed) and SIGUSR1 (a
//! scheduler's warning).
//!
//! The first signal lets the run finish its step and save. A second SIGINT or SIGTERM ends the
//! process at once. SIGHUP and SIGUSR1 may come more than once, from the kernel and a shell, or
//! before a scheduler's SIGTERM, and never end it. These two stay ignored if they were ignored at
//! the start, as under nohup.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;

use crate::error::{Context, Error, Result, interrupted};

/// The flags that the handlers set, and the number of listeners. Handlers are registered once per
/// process and shared by all runs.
static ASKED: Mutex<Option<(Flags, usize)>> = Mutex::new(None);

#[derive(Debug, Clone, Default)]
struct Flags {
    /// A signal has arrived.
    asked: Arc<AtomicBool>,
    /// SIGINT or SIGTERM has arrived: the next of them ends the process.
    insisted: Arc<AtomicBool>,
    /// Nobody is listening: a signal ends the process.
    idle: Arc<AtomicBool>,
}

/// Whether a signal has asked this process to stop. Once the last of these is dropped, signals have
/// their default effect again.
#[derive(Debug)]
pub struct Interrupt(Flags);

impl Interrupt {
    /// Starts listening.
    pub fn listen() -> Result<Self> {
        let mut asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
        let (flags, listeners) = match asked.take() {
            Some(found) => found,
            None => (register()?, 0),
        };
        if listeners == 0 {
            for flag in [&flags.asked, &flags.insisted, &flags.idle] {
                flag.store(false, Ordering::Relaxed);
            }
        }
        *asked = Some((flags.clone(), listeners + 1));
        Ok(Self(flags))
    }

    pub fn requested(&self) -> bool {
        self.0.asked.load(Ordering::Relaxed)
    }

    /// Returns an error if a signal has asked to stop; `done` says what was done until then, `hint`
    /// how to continue.
    pub fn check(
        &self,
        done: impl FnOnce() -> String,
        hint: impl FnOnce() -> String,
    ) -> Result<()> {
        match self.requested() {
            true => Err(stopped(done(), hint())),
            false => Ok(()),
        }
    }
}

/// The error of an operation that a signal stopped.
pub fn stopped(done: String, hint: String) -> Error {
    interrupted(format!("interrupted {done}"), hint)
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        let mut asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((flags, listeners)) = asked.as_mut() {
            *listeners -= 1;
            if *listeners == 0 {
                flags.idle.store(true, Ordering::Relaxed);
            }
        }
    }
}

fn register() -> Result<Flags> {
    let flags = Flags::default();
    let failed = "cannot listen for interrupts";
    for signal in [SIGINT, SIGTERM] {
        // In this order a second signal finds the flag set, and the process ends.
        for end in [&flags.idle, &flags.insisted] {
            flag::register_conditional_shutdown(signal, 130, end.clone()).context(failed)?;
        }
        flag::register(signal, flags.insisted.clone()).context(failed)?;
        flag::register(signal, flags.asked.clone()).context(failed)?;
    }
    for signal in [SIGHUP, SIGUSR1] {
        if is_ignored(signal) {
            continue;
        }
        flag::register_conditional_default(signal, flags.idle.clone()).context(failed)?;
        flag::register(signal, flags.asked.clone()).context(failed)?;
    }
    Ok(flags)
}

/// Whether this process was started with `signal` ignored, as under nohup; it must stay ignored
/// then.
///
/// Linux reports it in /proc; elsewhere it is unknown, and the signal asks to stop.
pub fn is_ignored(signal: i32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}
