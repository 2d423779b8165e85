//! Errors of a disk or a network that pass: what met one is tried again before it counts.
//!
//! A file server that restarts, a lease that was lost, a mount that times out: minutes of trouble
//! in weeks of training. A file is bad, or a run ends, only when all attempts have failed.

use std::fmt::Display;
use std::io::{self, Read};
use std::time::Duration;

use crate::telemetry::pulse;

/// What is waited before each further attempt: half a minute in all.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(8),
    Duration::from_secs(20),
];

/// Does `attempt` until it succeeds, fails for good, or has failed five times. `what` is named in
/// the warning.
///
/// An attempt begins anew: it opens its file itself, since a handle may be what has become stale.
pub(super) fn patiently<T>(
    what: &dyn Display,
    attempt: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    after(&PAUSES, what, attempt)
}

fn after<T>(
    pauses: &[Duration],
    what: &dyn Display,
    mut attempt: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    for (number, pause) in pauses.iter().enumerate() {
        match attempt() {
            Err(error) if passes(&error) => {
                if number == 0 {
                    tracing::warn!("{what}: {error}; it is tried again");
                }
                std::thread::sleep(*pause);
            }
            result => {
                pulse::beat();
                if number > 0 && result.is_ok() {
                    tracing::info!("{what}: succeeded at attempt {}", number + 1);
                }
                return result;
            }
        }
    }
    attempt()
}

/// Whether an error may be gone at the next attempt.
fn passes(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    /// Input/output error: what NFS and Lustre say of a server that they lost, and a disk of a
    /// sector.
    const EIO: i32 = 5;
    let by_number = match error.raw_os_error() {
        Some(EIO) => true,
        // ESHUTDOWN and EREMOTEIO: Lustre's and others' words for an evicted client.
        Some(108 | 121) => cfg!(target_os = "linux"),
        _ => false,
    };
    by_number
        || matches!(
            error.kind(),
            Interrupted
                | WouldBlock
                | TimedOut
                | StaleNetworkFileHandle
                | HostUnreachable
                | NetworkUnreachable
                | NetworkDown
                | NotConnected
                | ConnectionReset
                | ConnectionAborted
        )
}

/// A file that is read from its start to its end, each read tried again.
pub(super) struct Patient<'a, R> {
    pub inner: R,
    pub what: &'a dyn Display,
}

impl<R: Read> Read for Patient<'_, R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        patiently(self.what, || self.inner.read(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [Duration; 4] = [Duration::ZERO; 4];

    /// Fails with each of the errors in turn, then gives its bytes.
    struct Failing {
        errors: Vec<io::Error>,
        bytes: &'static [u8],
    }

    impl Read for Failing {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            match self.errors.pop() {
                Some(error) => Err(error),
                None => self.bytes.read(bytes),
            }
        }
    }

    fn failing(numbers: &[i32]) -> Failing {
        let errors = numbers.iter().map(|n| io::Error::from_raw_os_error(*n));
        Failing {
            errors: errors.collect(),
            bytes: b"whole",
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_passes_is_tried_again() {
        // EINTR, EIO, EAGAIN, ETIMEDOUT, ESTALE, ESHUTDOWN, EREMOTEIO.
        for number in [4, 5, 11, 110, 116, 108, 121] {
            for times in 0..5 {
                let mut reader = failing(&vec![number; times]);
                let mut bytes = [0; 5];
                let read = after(&NONE, &"file", || reader.read(&mut bytes));
                assert_eq!((read.ok(), &bytes), (Some(5), b"whole"), "{number}");
            }
            let mut reader = failing(&[number; 5]);
            let error = after(&NONE, &"file", || reader.read(&mut [0; 5])).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(number));
        }
    }

    #[test]
    fn what_stays_is_not() {
        // ENOENT, EACCES, EISDIR, ENOSPC.
        for number in [2, 13, 21, 28] {
            let mut reader = failing(&[number]);
            let error = after(&NONE, &"file", || reader.read(&mut [0; 5])).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(number));
        }
    }

    #[test]
    fn attempts_take_half_a_minute() {
        let all: Duration = PAUSES.iter().sum();
        assert!((25..40).contains(&all.as_secs()), "{all:?}");
    }
}
