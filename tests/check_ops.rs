//! The GPU's kernels give the CPU's results, and no kernel in this binary goes unchecked: what
//! `rdpm doctor --check-ops` compares, on the GPU of this machine.

use std::error::Error;
use std::io::{Write, stderr};
use std::process::{Command, Output};

use rdpm::ops::cuda::driver;

fn doctor(arguments: &[&str]) -> std::io::Result<Output> {
    Command::new(env!("CARGO_BIN_EXE_rdpm"))
        .arg("doctor")
        .args(arguments)
        .output()
}

/// Past the harness, which keeps what a test that passes prints to itself.
fn say(text: &str) -> std::io::Result<()> {
    writeln!(stderr(), "{text}")
}

#[test]
fn every_kernel_agrees_with_the_cpu() -> Result<(), Box<dyn Error>> {
    // A driver that does not start is an error; only without a GPU is there nothing to compare.
    if driver::gpus()? == 0 {
        say("no GPU was found: the kernels were compiled, and NOT compared with the CPU")?;
        return Ok(());
    }
    let output = doctor(&["--device", "cuda", "--check-ops"])?;
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    assert!(
        text.contains("every kernel in this binary for this GPU was run"),
        "{text}"
    );
    Ok(())
}

#[test]
fn without_a_gpu_nothing_falls_back_to_the_cpu() -> Result<(), Box<dyn Error>> {
    if driver::gpus()? > 0 {
        return say("a GPU was found: that --device cuda needs one was NOT tried")
            .map_err(Into::into);
    }
    let out = std::env::temp_dir().join(format!("rdpm-no-gpu-{}.png", std::process::id()));
    let sample = [
        "sample", "--model", "builtin", "--class", "index:0", "--num", "1", "--device", "cuda",
        "--out",
    ];
    let output = Command::new(env!("CARGO_BIN_EXE_rdpm"))
        .args(sample)
        .arg(&out)
        .output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(!out.exists());
    assert!(
        errors.contains("error: --device cuda: ") && errors.contains("hint: "),
        "{errors}"
    );
    Ok(())
}
