//! Signals, in a process of its own: they reach every thread of one.

use rdpm::interrupt::Interrupt;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::low_level::raise;

/// Two runs one after the other, as in `rdpm demo`. A handler of the first that is left would end this process.
#[test]
fn the_first_signal_of_a_second_run_asks_and_does_not_kill() {
    drop(Interrupt::listen().expect("handlers"));
    let second = Interrupt::listen().expect("handlers");
    assert!(!second.requested());
    raise(SIGINT).expect("a signal");
    assert!(second.requested());
    drop(second);
    // A closed terminal is told of twice, and a scheduler that warned insists: both ask only, until the run is saved.
    let third = Interrupt::listen().expect("handlers");
    assert!(!third.requested());
    for signal in [SIGHUP, SIGHUP, SIGUSR1, SIGUSR1, SIGTERM] {
        raise(signal).expect("a signal");
        assert!(third.requested());
    }
}
