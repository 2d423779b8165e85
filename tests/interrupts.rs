//! Signals, in a process of its own: they reach every thread of one.

use rdpm::train::interrupt::Interrupt;
use signal_hook::consts::SIGINT;
use signal_hook::low_level::raise;

/// Two runs one after the other, as in `rdpm demo`. A handler of the first that is left would end this process.
#[test]
fn the_first_signal_of_a_second_run_asks_and_does_not_kill() {
    drop(Interrupt::listen().expect("handlers"));
    let second = Interrupt::listen().expect("handlers");
    assert!(!second.requested());
    raise(SIGINT).expect("a signal");
    assert!(second.requested());
}
