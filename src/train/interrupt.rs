//! SIGINT and SIGTERM: the first asks the run to finish its step and save, the second ends it at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use signal_hook::consts::{SIGINT, SIGTERM};

use crate::error::{Context, Result};

/// What the handlers set, and how many listen. A handler stays for the process's life: all runs share it.
static ASKED: Mutex<Option<(Arc<AtomicBool>, usize)>> = Mutex::new(None);

/// Whether a signal has asked this process to stop. After the run, when this is dropped, the first signal ends it.
#[derive(Debug)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens from now on.
    pub fn listen() -> Result<Self> {
        let mut asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
        let (flag, listeners) = match asked.take() {
            Some(found) => found,
            None => (register()?, 0),
        };
        if listeners == 0 {
            flag.store(false, Ordering::Relaxed);
        }
        *asked = Some((flag.clone(), listeners + 1));
        Ok(Self(flag))
    }

    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        let mut asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((flag, listeners)) = asked.as_mut() {
            *listeners -= 1;
            if *listeners == 0 {
                flag.store(true, Ordering::Relaxed);
            }
        }
    }
}

fn register() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(true));
    for signal in [SIGINT, SIGTERM] {
        // In this order the second signal finds the flag set, and the process ends.
        signal_hook::flag::register_conditional_shutdown(signal, 130, flag.clone())
            .and_then(|_| signal_hook::flag::register(signal, flag.clone()))
            .context("cannot listen for interrupts")?;
    }
    Ok(flag)
}
