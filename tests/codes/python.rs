//! The Python reader, as far as NumPy alone goes: names and shapes of a bundle, and its noise.

use std::path::Path;
use std::process::Command;

use rdpm::error::Result;

use super::{prepare, succeeds};

#[test]
#[ignore = "needs NumPy and safetensors in the Python of $RDPM_PYTHON; .ci/run has one"]
fn the_python_reader_knows_every_name_and_draws_the_same_noise() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = folder.path();
    prepare(at, "model.safetensors", 1)?;
    // Both halves of the seed are in use.
    let seed = (7u64 << 32) + 5;
    succeeds(
        at,
        &format!("encode images --model model.safetensors --flip --save-noise --seed {seed}"),
    );
    let python = std::env::var_os("RDPM_PYTHON").unwrap_or_else(|| "python3".into());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/check_reader_numpy.py");
    let output = Command::new(python)
        .arg(script)
        .args(["model.safetensors", "codes.safetensors"])
        .current_dir(at)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    Ok(())
}
