//! What a run shows of itself: TensorBoard's event files, its starts, `rdpm report`.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::fixture::{GENERATOR, Lab, VAE};

/// Runs one of the project's scripts on `run`; nothing without $RDPM_PYTHON, whose Python needs
/// TensorBoard (.ci/run names one).
fn script(name: &str, run: &Path, more: &[&str]) -> Option<String> {
    let python: OsString = std::env::var_os("RDPM_PYTHON")?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(python);
    let script = command.arg(root.join("scripts").join(name)).arg(run);
    let output = script.args(more).output().expect("Python starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {said}");
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Event files by name.
fn events(run: &Path) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(run.join("tensorboard")).expect("a folder");
    let mut paths: Vec<_> = entries.map(|e| e.expect("an entry").path()).collect();
    paths.sort();
    let read = paths.iter().map(|path| fs::read(path).expect("a file"));
    read.collect()
}

/// To its end, then again from step 5 on: what was logged of steps 6 to 12 is logged twice.
fn tensorboard_reads_each_step_once(stage: &str) {
    let lab = Lab::new();
    lab.train(
        stage,
        "run",
        &[
            "--tensorboard",
            "--set",
            &format!("{}.image_every=4", stage.replace('-', "_")),
        ],
    );
    // Without the option: it goes on with what it has.
    lab.run(&[stage, "--resume", "run/checkpoints/step-00000005"]);
    let run = lab.path("run");
    let files = events(&run);
    assert_eq!(files.len(), 2);
    let holds = |file: &[u8], part: &[u8]| file.windows(part.len()).any(|w| w == part);
    // A session that starts at step 6.
    assert!(holds(&files[1], b"\x10\x06\x3a\x02\x08\x01"));
    assert!(holds(&files[0], b"train/grad_norm") && holds(&files[0], b"\x89PNG"));
    match script("check_tensorboard.py", &run, &[]) {
        Some(said) => assert!(said.contains("3 pictures"), "{said}"),
        None => eprintln!("RDPM_PYTHON names no Python: not read by TensorBoard"),
    }
    if let Some(said) = script("to_wandb.py", &run, &["--dry-run"]) {
        assert!(
            said.contains("run: 6 lines up to step 12, 3 pictures"),
            "{said}"
        );
        assert!(said.contains("grad_norm"), "{said}");
    }
    let starts = fs::read_to_string(run.join("starts.jsonl")).expect("starts");
    let steps: Vec<serde_json::Value> = starts
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["step"].clone())
        .collect();
    assert_eq!(steps, [0, 5]);
    lab.run(&["report", "run", "--out", "page.html"]);
    let page = fs::read_to_string(lab.path("page.html")).expect("a page");
    for part in [
        "finished",
        "step-00000012, ",
        "data:image/png",
        "--tensorboard",
        "<svg",
    ] {
        assert!(page.contains(part), "{part}");
    }
}

#[test]
fn tensorboard_reads_each_step_of_the_tokenizer_once() {
    tensorboard_reads_each_step_once(VAE);
}

#[test]
fn tensorboard_reads_each_step_of_the_generator_once() {
    tensorboard_reads_each_step_once(GENERATOR);
}

#[test]
fn a_run_that_is_not_asked_for_events_has_none() {
    let lab = Lab::new();
    lab.run(&lab.start(VAE, "run", &["--steps", "2"]));
    assert!(!lab.path("run/tensorboard").exists());
    assert!(lab.path("run/starts.jsonl").exists());
}
