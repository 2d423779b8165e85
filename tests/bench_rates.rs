//! `scripts/bench_cpu.py` refuses an impossible rate: a line of its table is fed the same
//! measurement, a tenth as long.

use std::process::{Command, Output};

use rdpm::error::Result;

/// The line for a measurement of `milliseconds` per image, on a machine of 75 GFLOP/s.
fn line(milliseconds: f64) -> Result<Output> {
    let scripts = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts");
    let program = format!(
        "import sys; sys.path.insert(0, {scripts:?})
import bench_cpu
rates = bench_cpu.Rates(lambda: 75e9)
ours, theirs = ({milliseconds}, 100, {milliseconds}), (52.9, 700, 52.9, 2.6e9, 4e7)
print(bench_cpu.line('demo sample', [(ours, theirs)], rates))
rates.end()"
    );
    Ok(Command::new("python3").args(["-c", &program]).output()?)
}

#[test]
#[ignore = "needs python3"]
fn a_time_that_was_divided_by_ten_ends_the_bench_with_exit_code_1() -> Result<()> {
    let true_one = line(40.0)?;
    assert!(true_one.status.success(), "{true_one:?}");
    let told = String::from_utf8(true_one.stdout)?;
    assert!(told.contains("64.0 GFLOP/s"), "{told}");

    let tenth = line(4.0)?;
    assert_eq!(tenth.status.code(), Some(1), "{tenth:?}");
    let told = String::from_utf8(tenth.stdout)?;
    assert!(
        told.contains("640.0 GFLOP/s, but this machine reaches 75.0"),
        "{told}"
    );
    Ok(())
}
