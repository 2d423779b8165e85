//! The binary as a shell sees it: exit codes, what goes to stdout and stderr, pipes, traces.

use std::path::Path;
use std::process::{Command, Output, Stdio};

const ZIP: &str = "tests/data/weights/zip.pth";

fn rdpm(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rdpm"));
    command
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env_remove("RUST_LOG");
    command
}

fn run(arguments: &[&str]) -> Output {
    rdpm(arguments).output().expect("the binary starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn exit_codes_tell_done_failed_and_bad_usage() {
    for (arguments, code) in [
        (&["--version"][..], 0),
        (&["inspect", ZIP], 0),
        (&["inspect", "no/such/file"], 1),
        (&["inspect"], 2),
        (&["inspct", ZIP], 2),
        (&["inspect", ZIP, "--threads", "0"], 2),
        (&["export", "--out", "x"], 2),
        (&["inspect", ZIP, "--trace", "/no/such/folder/t"], 2),
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert_eq!(output.stdout.is_empty(), code != 0, "{arguments:?}");
    }
}

#[test]
fn an_error_is_two_lines_on_stderr() {
    let output = run(&["inspect", "tests/data/weights/evil.pth"]);
    let text = stderr(&output);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(
        lines[0].starts_with("error: ") && lines[1].starts_with("hint: "),
        "{text}"
    );
}

#[test]
fn json_is_one_object_on_stdout() {
    let output = run(&["inspect", ZIP, "--json", "--tensors"]);
    let facts: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(facts["kind"], "weights");
    assert_eq!(
        facts["tensors"]["permuted"]["shape"],
        serde_json::json!([4, 2, 3])
    );
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = rdpm(&["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
}

#[test]
fn a_trace_is_whole_when_the_command_is_done() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("trace.json");
    let trace = path.to_str().expect("UTF-8");
    assert!(run(&["inspect", ZIP, "--trace", trace]).status.success());
    let text = std::fs::read_to_string(Path::new(trace)).expect("a file");
    let events: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let events = events.as_array().expect("a list of events");
    assert!(events.iter().any(|e| e["name"] == "inspect"), "{text}");
}

#[test]
fn a_trace_on_a_full_disk_ends_early_and_the_command_does_not() {
    let output = run(&["inspect", ZIP, "--trace", "/dev/full"]);
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert!(
        told.contains("the trace /dev/full ends early") && !told.contains("panicked"),
        "{told}"
    );
}

#[test]
fn weights_that_do_not_fit_are_named_without_a_backtrace() {
    let options = "train-vae --config smoke --data tests/data/images --set loss.perceptual=lpips --out no/run";
    let mut arguments: Vec<&str> = options.split(' ').collect();
    arguments.extend(["-q", "--vgg", ZIP, "--lpips", ZIP]);
    let output = rdpm(&arguments).env("RUST_BACKTRACE", "1").output();
    let output = output.expect("the binary starts");
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains(ZIP) && told.contains("features.0.weight"),
        "{told}"
    );
    assert_eq!(told.lines().count(), 2, "{told}");
}

#[test]
fn a_number_below_its_range_is_a_value_and_no_option() {
    let output = run(&["sample", "--model", ZIP, "--cfg", "-1"]);
    assert!(
        !stderr(&output).contains("unexpected"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_dry_run_says_what_the_data_hold_and_what_is_hard_to_believe() {
    for (shard, found, doubt) in [
        (
            "tiny.tar",
            "data: 4 images of 2 classes (the folders in train/)",
            "",
        ),
        (
            "txt.tar",
            "data: 4 images of 2 classes (labels in .txt)",
            "",
        ),
        (
            "onebased.tar",
            "data: 4 images of 3 classes (labels in fields)",
            "labels begin at 1",
        ),
    ] {
        let path = format!("tests/data/shards/{shard}");
        let output = run(&[
            "train-vae",
            "--config",
            "smoke",
            "--dry-run",
            "--data",
            &path,
        ]);
        let (said, told) = (String::from_utf8_lossy(&output.stdout), stderr(&output));
        assert!(said.contains(found), "{shard}: {said}{told}");
        assert!(told.contains("images=4 classes="), "{told}");
        assert_eq!(
            told.contains("WARN") || told.contains("begin at 1"),
            !doubt.is_empty(),
            "{told}"
        );
        assert!(told.contains(doubt), "{told}");
    }
}
