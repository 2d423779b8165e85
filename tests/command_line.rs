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
        (&["encode"], 2),
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
fn threads_beyond_reason_are_refused_before_they_are_started() {
    let by_option = run(&["completions", "bash", "--threads", "1025"]);
    let mut command = rdpm(&["completions", "bash"]);
    let by_variable = command.env("RAYON_NUM_THREADS", "1025").output();
    for (output, from) in [
        (by_option, "--threads"),
        (
            by_variable.expect("the binary starts"),
            "$RAYON_NUM_THREADS",
        ),
    ] {
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(
            told.contains(&format!("{from}: 1025 threads, at most 1024")),
            "{told}"
        );
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
fn a_full_stdout_is_said_to_be_one() {
    let full = std::fs::File::options().write(true).open("/dev/full");
    let mut command = rdpm(&["completions", "bash"]);
    let output = command.stdout(full.expect("Linux has it")).output();
    let output = output.expect("the binary starts");
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains("cannot write the result to stdout: No space left"),
        "{told}"
    );
    assert!(told.contains("hint: "), "{told}");
}

/// Help and version are a result too.
#[test]
fn a_help_that_cannot_be_written_is_an_error() {
    for arguments in [&["--help"][..], &["--version"], &["sample", "-h"]] {
        let full = std::fs::File::options().write(true).open("/dev/full");
        let mut command = rdpm(arguments);
        let output = command.stdout(full.expect("Linux has it")).output();
        let output = output.expect("the binary starts");
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {told}");
        assert!(told.contains("cannot write to stdout: No space"), "{told}");
    }
}

/// Which of several state dicts was taken, and what of it was left out.
#[test]
fn what_is_not_taken_of_weights_is_said() {
    for (name, said) in [
        (
            "averaged.pth",
            "`ema` is taken, and `model` is not; to take another, save it alone: \
             torch.save(torch.load(FILE)[\"model\"], OTHER)",
        ),
        (
            "beside.pth",
            "2 tensors are left out: `freqs_cis` has elements of type \
             ComplexFloatStorage, which is not read",
        ),
    ] {
        let output = run(&["inspect", &format!("tests/data/weights/{name}")]);
        let told = stderr(&output);
        assert!(output.status.success(), "{told}");
        assert!(told.contains(&format!("{name}: {said}")), "{told}");
    }
}

#[test]
fn without_a_home_a_hint_says_what_to_set() {
    let line = "eval-fid --samples tests/data/images --reference tests/data/images --crop 32";
    let arguments: Vec<&str> = line.split(' ').collect();
    let mut command = rdpm(&arguments);
    let output = command
        .env_remove("HOME")
        .env_remove("XDG_CACHE_HOME")
        .output();
    let told = stderr(&output.expect("the binary starts"));
    assert!(
        told.contains("neither HOME nor XDG_CACHE_HOME is set"),
        "{told}"
    );
    assert!(
        told.contains("hint: set HOME") && told.contains("--weights FILE"),
        "{told}"
    );
}

/// A file of the wrong kind is named for what it is, with a suitable hint.
#[test]
fn foreign_files_are_named_by_every_command_that_reads_weights() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("pointer.pth");
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 123\n";
    std::fs::write(&path, pointer).expect("written");
    let path = path.to_str().expect("UTF-8");
    // All images of this data set are readable, because training reads some before it reads
    // weights.
    let train = "train-vae --config smoke --data tests/data/shards/tiny.tar --out no/run";
    let images = "tests/data/images";
    for line in [
        format!("inspect {path}"),
        format!("sample --class 0 --model {path}"),
        format!("reconstruct {images} --model {path}"),
        format!("decode {path} --model {path}"),
        format!("{train} --init {path}"),
        format!("{train} --set loss.perceptual=lpips --vgg {path} --lpips {path}"),
        format!("eval-fid --samples {images} --reference {images} --crop 32 --weights {path}"),
        format!("train-gen --config smoke --data {images} --vae {path} --out no/run"),
        format!("export --vae {path} --out no/file"),
    ] {
        let output = run(&line.split(' ').collect::<Vec<_>>());
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{line}: {told}");
        assert!(
            told.contains("is a git-LFS pointer") && told.contains("hint: "),
            "{line}: {told}"
        );
    }
    let array = folder.path().join("images.npy");
    std::fs::write(&array, b"\x93NUMPY\x01\0v\0{'descr': '|u1'").expect("written");
    let array = array.to_str().expect("UTF-8");
    let output = run(&["eval-fid", "--samples", array, "--reference", images]);
    let told = stderr(&output);
    assert!(
        told.contains("is a .npy array") && told.contains("numpy.savez"),
        "{told}"
    );
}

#[test]
fn a_damaged_image_is_no_reason_to_name_an_option_that_eval_fid_lacks() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("a.png"), "no picture").expect("written");
    let path = folder.path().to_str().expect("UTF-8");
    let told = stderr(&run(&["eval-fid", "--samples", path, "--reference", path]));
    assert!(
        told.contains("a.png") && told.contains("hint: replace or remove"),
        "{told}"
    );
    assert!(!told.contains("--skip"), "{told}");
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
    // Beside what the data set is warned of.
    let told = told.lines().filter(|line| !line.contains(" WARN "));
    assert_eq!(told.count(), 2);
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
