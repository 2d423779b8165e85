//! Signals, in a separate process, because they reach every thread of it.

use rdpm::interrupt::Interrupt;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::low_level::raise;

/// Two runs one after the other, as in `rdpm demo`. A leftover handler of the first would end this
/// process.
#[test]
fn the_first_signal_of_a_second_run_asks_and_does_not_kill() {
    drop(Interrupt::listen().expect("handlers"));
    let second = Interrupt::listen().expect("handlers");
    assert!(!second.requested());
    raise(SIGINT).expect("a signal");
    assert!(second.requested());
    drop(second);
    // A closed terminal sends SIGHUP twice, and a scheduler warns and then insists: neither may end
    // the process before the run is saved.
    let third = Interrupt::listen().expect("handlers");
    assert!(!third.requested());
    for signal in [SIGHUP, SIGHUP, SIGUSR1, SIGUSR1, SIGTERM] {
        raise(signal).expect("a signal");
        assert!(third.requested());
    }
}
