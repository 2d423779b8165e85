//! Runs that are killed again and again end as those that nobody killed; scripts/soak.sh does more
//! of it.

use std::process::{Command, Stdio};

#[test]
fn runs_killed_at_random_moments_end_as_those_that_nobody_killed() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/soak.sh");
    let mut command = Command::new(script);
    command
        .args(["4", "7"])
        .env("RDPM", env!("CARGO_BIN_EXE_rdpm"))
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    let output = command.output().expect("bash runs");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{told}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for stage in ["train-vae: 4 kills", "train-gen: 4 kills"] {
        assert!(told.contains(stage), "{told}");
    }
}
