//! What clusters do to a run: faults.c makes their file systems and clocks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::fixture::{GENERATOR, Lab, VAE, assert_same, send, stderr};

/// Numbers of errors, as faults.c takes them.
const ENOLCK: &str = "37";
const ENOSYS: &str = "38";
const EINVAL: &str = "22";
const EOPNOTSUPP: &str = "95";

/// Long enough to be stopped, with a line a step.
const LONG: [&str; 4] = ["--steps", "100000", "--set", "train_vae.log_every=1"];

/// Hidden files and owners below `folder`.
fn left(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.ends_with(".owner") || name.ends_with(".partial") {
                found.push(path.clone());
            }
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    found
}

/// The step of the newest checkpoint.
fn saved(lab: &Lab, run: &str) -> u64 {
    let name = fs::read_to_string(lab.path(run).join("checkpoints/latest")).expect("a checkpoint");
    let step = name.trim().trim_start_matches("step-");
    step.parse().expect("a step")
}

#[test]
fn a_file_system_without_locks_and_folder_syncs_does() {
    let lab = Lab::new();
    lab.run(&lab.start(VAE, "whole", &["--steps", "3"]));
    for (locks, sync) in [(ENOLCK, EINVAL), (ENOSYS, EOPNOTSUPP), (EOPNOTSUPP, ENOSYS)] {
        let out = format!("run-{locks}");
        let arguments = lab.start(VAE, &out, &["--steps", "3"]);
        let faults = [("FAULT_LOCKS", locks), ("FAULT_FOLDER_SYNC", sync)];
        let output = lab.faulty(&arguments, &faults).output().expect("it runs");
        let told = stderr(&output);
        assert!(output.status.success(), "{told}");
        assert_eq!(told.matches("has no locks").count(), 1, "{told}");
        assert!(!told.contains("cannot sync"), "{told}");
        assert!(
            left(&lab.path(&out)).is_empty(),
            "{:?}",
            left(&lab.path(&out))
        );
        assert_same(&lab.path("whole"), &lab.path(&out));
    }
}

#[test]
fn without_locks_the_second_process_is_refused_and_a_dead_one_replaced() {
    let lab = Lab::new();
    let faults = [("FAULT_LOCKS", ENOLCK)];
    let start = lab.start(VAE, "run", &LONG);
    let mut command = lab.faulty(&start, &faults);
    let mut first = lab.wait_until(command.stderr(Stdio::null()), "run", 2);
    let resume = [VAE, "--resume", "run", "--steps", "3"];
    let output = lab.faulty(&resume, &faults).output().expect("it runs");
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    let who = format!("another process, {}, is writing to run", first.id());
    assert!(told.contains(&who), "{told}");
    first.kill().expect("killed");
    first.wait().expect("gone");
    let owner = lab.path("run/.lock.owner");
    let dead = fs::read_to_string(&owner).expect("what it left");
    // A process elsewhere may live, whether this machine has locks or not.
    fs::write(&owner, "node7 12 345\n").expect("written");
    for faults in [&faults[..], &[]] {
        let output = lab.faulty(&resume, faults).output().expect("it runs");
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(
            told.contains("process 12 on node7 is writing to run"),
            "{told}"
        );
        assert!(told.contains("remove run/.lock.owner"), "{told}");
    }
    // What the killed process left in the middle of a checkpoint.
    fs::write(&owner, &dead).expect("written");
    let partial = lab.path("run/checkpoints/.step-00099999.partial");
    fs::create_dir_all(partial.join("x")).expect("a folder");
    fs::write(partial.with_extension("partial.owner"), &dead).expect("written");
    fs::write(lab.path("run/.gone.partial.owner"), &dead).expect("written");
    let more = (lab.last_step("run").expect("a line") + 3).to_string();
    let resume = [VAE, "--resume", "run", "--steps", &more];
    let output = lab.faulty(&resume, &faults).output().expect("it runs");
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        left(&lab.path("run")).is_empty(),
        "{:?}",
        left(&lab.path("run"))
    );
}

#[test]
fn a_run_goes_on_while_the_disk_is_full_and_saves_when_it_is_not() {
    let lab = Lab::new();
    let faults = [("FAULT_FULL", "full"), ("FAULT_FULL_ONLY", "/run/")];
    let every = [
        "--set",
        "train_vae.checkpoint_every=3",
        "--save-patience",
        "20",
    ];
    let arguments = lab.start(VAE, "run", &[&LONG[..], &every].concat());
    let mut child = lab.spawn_said(&mut lab.faulty(&arguments, &faults), "said");
    lab.until("step 4 comes", || lab.last_step("run") >= Some(4));
    fs::write(lab.path("full"), "").expect("a file");
    lab.until_said(
        &mut child,
        "said",
        "is not saved: cannot write run/checkpoints/",
    );
    lab.until_said(&mut child, "said", "its log line is lost");
    let (kept, logged) = (saved(&lab, "run"), lab.last_step("run"));
    assert!(kept >= 3);
    assert!(
        left(&lab.path("run")).is_empty(),
        "{:?}",
        left(&lab.path("run"))
    );
    // Whole: it can be read and gone on from.
    lab.run(&["inspect", "run"]);
    fs::remove_file(lab.path("full")).expect("room");
    lab.until_said(&mut child, "said", "the disk has room again");
    lab.until("a line comes", || lab.last_step("run") > logged);
    assert!(saved(&lab, "run") > kept);
    send("-TERM", child.id());
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    let said = fs::read_to_string(lab.path("said")).expect("what it said");
    // Tried each two seconds, not at each of the many steps.
    assert!(said.matches("is not saved").count() < 10, "{said}");
    let step = (saved(&lab, "run") + 1).to_string();
    lab.run(&[VAE, "--resume", "run", "--steps", &step]);
}

#[test]
fn a_disk_that_stays_full_ends_a_run_after_its_patience() {
    let lab = Lab::new();
    let faults = [
        ("FAULT_FULL", "full"),
        ("FAULT_FULL_ONLY", "/checkpoints/.step-"),
    ];
    let every = [
        "--set",
        "train_vae.checkpoint_every=3",
        "--save-patience",
        "2",
    ];
    let arguments = lab.start(VAE, "run", &[&LONG[..], &every].concat());
    let mut child = lab.spawn_said(&mut lab.faulty(&arguments, &faults), "said");
    lab.until("step 4 comes", || lab.last_step("run") >= Some(4));
    fs::write(lab.path("full"), "").expect("a file");
    let ended = child.wait().expect("it ends");
    let said = fs::read_to_string(lab.path("said")).expect("what it said");
    assert_eq!(ended.code(), Some(1), "{said}");
    let (_, error) = said.split_once("error: ").expect(&said);
    assert!(error.starts_with("cannot write run/checkpoints/"), "{said}");
    assert!(
        error.contains("No space left") && error.contains("--save-patience"),
        "{said}"
    );
    assert!(
        left(&lab.path("run")).is_empty(),
        "{:?}",
        left(&lab.path("run"))
    );
    let step = (saved(&lab, "run") + 1).to_string();
    lab.run(&[VAE, "--resume", "run", "--steps", &step]);
}

#[test]
fn a_signal_while_the_disk_is_full_says_what_is_lost() {
    let lab = Lab::new();
    let faults = [("FAULT_FULL", "full"), ("FAULT_FULL_ONLY", "/run/")];
    let every = ["--set", "train_vae.checkpoint_every=3"];
    let arguments = lab.start(VAE, "run", &[&LONG[..], &every].concat());
    let mut child = lab.spawn_said(&mut lab.faulty(&arguments, &faults), "said");
    lab.until("step 4 comes", || lab.last_step("run") >= Some(4));
    fs::write(lab.path("full"), "").expect("a file");
    lab.until_said(&mut child, "said", "is not saved");
    send("-TERM", child.id());
    let ended = child.wait().expect("it ends");
    let said = fs::read_to_string(lab.path("said")).expect("what it said");
    assert_eq!(ended.code(), Some(1), "{said}");
    assert!(
        said.contains(", and not saved: cannot write run/checkpoints/"),
        "{said}"
    );
    let lost = format!("the steps after {} are lost", saved(&lab, "run"));
    assert!(
        said.contains(&lost) && said.contains("--resume run"),
        "{said}"
    );
}

/// In two processes, the second of which waits for the first.
#[test]
fn a_finished_run_waits_for_room() {
    let lab = Lab::new();
    lab.run(&lab.start(VAE, "whole", &[]));
    fs::write(lab.path("full"), "").expect("a file");
    let faults = [
        ("FAULT_FULL", "full"),
        ("FAULT_FULL_ONLY", "/checkpoints/.step-00000012"),
    ];
    let run = lab.start(VAE, "run", &["--save-patience", "50"]);
    let launch = [&["launch", "--nproc", "2", "--"], &run[..]].concat();
    let mut command = lab.faulty(&launch, &faults);
    let mut child = lab.spawn_said(command.env("RAYON_NUM_THREADS", "1"), "said");
    lab.until_said(&mut child, "said", "step 12 is not saved");
    fs::remove_file(lab.path("full")).expect("room");
    let ended = child.wait().expect("it ends");
    let said = fs::read_to_string(lab.path("said")).expect("what it said");
    assert!(ended.success(), "{said}");
    assert!(
        said.contains("saved after step 12: the disk has room again"),
        "{said}"
    );
    assert_same(&lab.path("whole"), &lab.path("run"));
}

#[test]
fn a_picture_and_a_log_line_that_find_no_room_are_all_that_is_lost() {
    let lab = Lab::new();
    let more = ["--set", "train_vae.image_every=4"];
    lab.run(&lab.start(VAE, "whole", &more));
    fs::write(lab.path("full"), "").expect("a file");
    for (only, words) in [
        ("/images/", "step 12: no image: cannot write"),
        (
            "metrics.jsonl",
            "step 12: its log line is lost: cannot write",
        ),
    ] {
        let out = if only == "metrics.jsonl" {
            "lines"
        } else {
            "pictures"
        };
        let faults = [("FAULT_FULL", "full"), ("FAULT_FULL_ONLY", only)];
        let arguments = lab.start(VAE, out, &more);
        let output = lab.faulty(&arguments, &faults).output().expect("it runs");
        let told = stderr(&output);
        assert!(output.status.success() && told.contains(words), "{told}");
        let model = |run: &str| {
            let file = "checkpoints/step-00000012/model.safetensors";
            fs::read(lab.path(run).join(file)).expect("the last checkpoint")
        };
        assert!(model("whole") == model(out));
    }
}

#[test]
fn a_folder_that_cannot_be_written_to_is_refused_at_the_start() {
    let lab = Lab::new();
    let faults = [("FAULT_READ_ONLY", "run")];
    lab.run(&lab.start(VAE, "run", &["--steps", "2"]));
    let new = lab.start(VAE, "run-new", &["--steps", "2"]);
    for arguments in [&new[..], &[VAE, "--resume", "run", "--steps", "3"]] {
        let output = lab.faulty(arguments, &faults).output().expect("it runs");
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains("error: cannot write run"), "{told}");
        assert!(
            told.contains("hint: choose a folder that you may write to"),
            "{told}"
        );
        assert!(!told.contains("from step"), "{told}");
    }
    assert!(!lab.path("run-new").exists());
}

#[test]
fn an_image_that_vanishes_is_named_with_its_remedy() {
    let lab = Lab::new();
    let child = lab.spawn_until(&lab.start(VAE, "run", &LONG), "run", 2);
    fs::remove_file(lab.path("data/wide/4.png")).expect("removed");
    let output = child.wait_with_output().expect("it ends");
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("data/wide/4.png is gone"), "{told}");
    assert!(told.contains("rdpm index --refresh "), "{told}");
}

/// Ten years forwards, back, and ten years backwards: neither the run and its hourly checkpoints
/// nor the signs of life between its processes depend on the time of day.
#[test]
fn a_clock_that_jumps_changes_nothing() {
    let lab = Lab::new();
    let more = [
        "--steps",
        "150",
        "--set",
        "train_vae.log_every=1",
        "--set",
        "train_vae.checkpoint_every=1000",
        "--set",
        "train_vae.checkpoint_minutes=60",
    ];
    lab.run(&lab.start(VAE, "whole", &more));
    let faults = [("FAULT_CLOCK", "later"), ("FAULT_CLOCK_BACK", "earlier")];
    let run = lab.start(VAE, "run", &[&more[..], &["--timeout", "60"]].concat());
    let launch = [&["launch", "--nproc", "2", "--"], &run[..]].concat();
    let mut command = lab.faulty(&launch, &faults);
    let mut child = lab.spawn_said(command.env("RAYON_NUM_THREADS", "1"), "said");
    for (step, name) in [(10, "later"), (50, "earlier")] {
        lab.until("the step comes", || lab.last_step("run") >= Some(step));
        fs::write(lab.path(name), "").expect("a file");
        lab.until("the step comes", || lab.last_step("run") >= Some(step + 20));
        fs::remove_file(lab.path(name)).expect("removed");
    }
    assert!(
        child.try_wait().expect("a state").is_none(),
        "it ended too soon"
    );
    let ended = child.wait().expect("it ends");
    let said = fs::read_to_string(lab.path("said")).expect("what it said");
    assert!(ended.success(), "{said}");
    let steps: Vec<String> = fs::read_dir(lab.path("run/checkpoints"))
        .expect("checkpoints")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .filter(|name| name.starts_with("step-"))
        .collect();
    assert_eq!(steps.len(), 2, "{steps:?}");
    assert_same(&lab.path("whole"), &lab.path("run"));
}

/// The first images that are read, for the metrics, are on a server that is gone.
#[test]
fn a_hang_before_the_first_step_ends_all() {
    let lab = Lab::new();
    let faults = [("FAULT_HANG", "/0.png")];
    // Far above what is done at once on a busy machine.
    let run = lab.start(VAE, "run", &["--timeout", "10"]);
    let launch = [&["launch", "--nproc", "2", "--"], &run[..]].concat();
    for arguments in [&run, &launch] {
        let begin = Instant::now();
        let output = lab.faulty(arguments, &faults).output().expect("it runs");
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(
            told.contains("error: the first step does not begin"),
            "{told}"
        );
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "{:?}",
            begin.elapsed()
        );
    }
}

/// A rank with a bad image, and another that its loader waits for without end.
#[test]
fn a_rank_that_fails_says_so_before_its_threads_end() {
    let lab = Lab::new();
    let more = ["--steps", "20", "--workers", "1", "-vv"];
    lab.train(VAE, "vae", &["--steps", "3"]);
    let output = lab.output(&lab.start(GENERATOR, "one", &more));
    let told = stderr(&output);
    let read: Vec<&str> = told
        .lines()
        .filter_map(|line| Some(line.split_once("reading ")?.1.split_once("/data/")?.1))
        .collect();
    // Two images a micro-batch, of which each second one is rank 1's: the bad one is in its second,
    // and the other is read by its second thread for the third.
    fs::write(lab.path("data").join(read[6]), "no picture").expect("written");
    let hang = format!("/{}", read[11]);
    let run = lab.start(GENERATOR, "run", &["--steps", "20"]);
    let launch = [&["launch", "--nproc", "2", "--"], &run[..]].concat();
    let begin = Instant::now();
    let faults = [("FAULT_HANG", hang.as_str())];
    let output = lab.faulty(&launch, &faults).output().expect("it runs");
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains("[0] error: rank 1 (") && told.contains(read[6]),
        "{told}"
    );
    assert!(
        begin.elapsed() < Duration::from_secs(60),
        "{:?}",
        begin.elapsed()
    );
}

/// A checkpoint's file is on a server that is gone, after some steps and one checkpoint.
#[test]
fn a_hang_in_a_checkpoint_ends_all() {
    let lab = Lab::new();
    let faults = [("FAULT_HANG", "step-00000005.partial/optimizer.safetensors")];
    let run = lab.start(VAE, "run", &["--timeout", "10", "--steps", "100000"]);
    let launch = [&["launch", "--nproc", "2", "--"], &run[..]].concat();
    for (arguments, by) in [
        (&run, "error: after step 5"),
        (&launch, "[0] error: after step 5"),
    ] {
        let _ = fs::remove_dir_all(lab.path("run"));
        let begin = Instant::now();
        let output = lab.faulty(arguments, &faults).output().expect("it runs");
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{told}");
        let expected = format!("{by}, the checkpoint does not get done");
        assert!(told.contains(&expected), "{told}");
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "{:?}",
            begin.elapsed()
        );
        assert_eq!(saved(&lab, "run"), 0, "the checkpoint before is whole");
    }
}

#[test]
fn a_checkpoint_that_is_slowly_written_is_no_hang() {
    let lab = Lab::new();
    let faults = [("FAULT_SLOW", "step-00000001.partial/.optimizer")];
    // The moments are several pieces, each of which takes 2 s.
    let more = ["--timeout", "3", "--steps", "1", "--set", "tokenizer.ch=24"];
    let run = lab.start(VAE, "run", &more);
    let begin = Instant::now();
    let output = lab.faulty(&run, &faults).output().expect("it runs");
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        begin.elapsed() > Duration::from_secs(6),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(saved(&lab, "run"), 1);
}
