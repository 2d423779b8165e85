//! `rdpm launch`: a command in several processes that begin and end together.

use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::fixture::{Lab, VAE, assert_same, send, stderr};

const FOUR: [&str; 6] = [
    "--set",
    "train_vae.batch_size=8",
    "--set",
    "train_vae.accumulate=4",
    "--set",
    "train_vae.log_every=1",
];

/// The arguments that launch a training command.
fn launch<'a>(options: &[&'a str], command: &[&'a str]) -> Vec<&'a str> {
    [&["launch"], options, &["--"], command].concat()
}

/// Starts it in the background and waits until `out` has logged `step`.
fn spawn_until(lab: &Lab, arguments: &[&str], out: &str, step: u64) -> Child {
    let mut command = lab.command(arguments);
    command.env("RAYON_NUM_THREADS", "1").stderr(Stdio::piped());
    lab.wait_until(&mut command, out, step)
}

/// The processes that `parent` has started, in their order.
fn children(parent: u32) -> Vec<u32> {
    let all = fs::read_dir("/proc").expect("Linux");
    let ids = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut ids: Vec<u32> = ids
        .filter(|id| state(*id).is_some_and(|s| s.1 == parent))
        .collect();
    ids.sort_unstable();
    ids
}

/// How a process is, and its parent.
fn state(process: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // After the name in parentheses, which may hold spaces.
    let (_, after) = stat.rsplit_once(") ")?;
    let mut words = after.split(' ');
    Some((words.next()?.chars().next()?, words.next()?.parse().ok()?))
}

/// Whether a process runs; one that has ended may still wait for its parent.
fn is_there(process: u32) -> bool {
    state(process).is_some_and(|(state, _)| state != 'Z')
}

#[test]
fn a_launched_command_is_the_same_as_in_one_process() {
    let lab = Lab::new();
    lab.train(VAE, "one", &FOUR);
    let arguments = launch(&["--nproc", "2"], &lab.start(VAE, "two", &FOUR));
    let output = lab.output(&arguments);
    let told = stderr(&output);
    assert!(output.status.success(), "{told}");
    assert_same(&lab.path("one"), &lab.path("two"));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "two\n");
    assert!(told.lines().all(|line| line.starts_with("[0] ")), "{told}");
    assert!(told.contains("train-vae 12/12"), "{told}");
}

#[test]
fn a_signal_to_the_launcher_stops_all_after_a_checkpoint() {
    let lab = Lab::new();
    let long = lab.start(VAE, "run", &[&FOUR[..], &["--steps", "100000"]].concat());
    let launcher = spawn_until(&lab, &launch(&["--nproc", "2"], &long), "run", 2);
    let started = children(launcher.id());
    assert_eq!(started.len(), 2);
    send("-INT", launcher.id());
    let output = launcher.wait_with_output().expect("it ends");
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(130), "{told}");
    assert!(
        told.contains("[0] hint: continue with: rdpm train-vae --resume run"),
        "{told}"
    );
    assert!(!started.into_iter().any(is_there));
    let saved = fs::read_to_string(lab.path("run/checkpoints/latest")).expect("saved");
    assert_ne!(saved.trim(), "step-00000000");
}

/// The others end with it and name it, and no process is left; with a restart the run goes on to
/// the bytes of an uninterrupted one.
#[test]
fn a_killed_rank_ends_the_job_and_a_restart_goes_on() {
    let lab = Lab::new();
    let steps = ["--steps", "150", "--resume", "auto"];
    let begun = |out| lab.start(VAE, out, &[&FOUR[..], &steps].concat());
    lab.run(&begun("whole"));
    for (out, restarts) in [("ends", "0"), ("goes-on", "1")] {
        let options = ["--nproc", "2", "--restarts", restarts];
        let launcher = spawn_until(&lab, &launch(&options, &begun(out)), out, 3);
        let started = children(launcher.id());
        send("-KILL", started[1]);
        let begin = Instant::now();
        let output = launcher.wait_with_output().expect("it ends");
        let told = stderr(&output);
        assert!(!started.into_iter().any(is_there));
        assert!(told.contains("[0] error: rank 1 ("), "{told}");
        if restarts == "1" {
            assert!(output.status.success(), "{told}");
            assert!(
                told.contains("rank 1 was killed by signal 9: all start again"),
                "{told}"
            );
            assert_same(&lab.path("whole"), &lab.path(out));
        } else {
            assert_eq!(output.status.code(), Some(1), "{told}");
            assert!(
                told.contains("error: rank 1 was killed by signal 9"),
                "{told}"
            );
            assert!(begin.elapsed() < Duration::from_secs(40));
        }
    }
}

/// A rank that hangs: SIGSTOP stops its signs of life too.
#[test]
fn a_rank_that_falls_silent_ends_the_job() {
    let lab = Lab::new();
    let long = lab.start(VAE, "run", &[&FOUR[..], &["--steps", "100000"]].concat());
    let launcher = spawn_until(&lab, &launch(&["--nproc", "2"], &long), "run", 2);
    let started = children(launcher.id());
    let begin = Instant::now();
    send("-STOP", started[1]);
    let output = launcher.wait_with_output().expect("it ends");
    let told = stderr(&output);
    // 20 s of silence and 13 until the last is ended, on a machine that has other work.
    assert!(begin.elapsed() < Duration::from_secs(120), "{told}");
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains("[0] error: rank 1 (") && told.contains("no sign of life for 20 s"),
        "{told}"
    );
    assert!(!started.into_iter().any(is_there));
}

/// A launcher that is killed takes its processes with it, which save first.
#[test]
fn no_process_outlives_its_launcher() {
    let lab = Lab::new();
    let long = lab.start(VAE, "run", &[&FOUR[..], &["--steps", "100000"]].concat());
    let mut launcher = spawn_until(&lab, &launch(&["--nproc", "2"], &long), "run", 2);
    let started = children(launcher.id());
    launcher.kill().expect("killed");
    launcher.wait().expect("gone");
    lab.until("they end", || !started.iter().any(|id| is_there(*id)));
    let saved = fs::read_to_string(lab.path("run/checkpoints/latest")).expect("saved");
    assert_ne!(saved.trim(), "step-00000000");
}

#[test]
fn what_cannot_be_launched_is_refused() {
    let lab = Lab::new();
    let train = lab.start(VAE, "run", &[]);
    for (options, command, words) in [
        (
            &["--nproc", "2"][..],
            &["inspect", "x"][..],
            "rdpm inspect is one process",
        ),
        (
            &["--nproc", "2"],
            &["sample", "--model", "x", "--part", "0/2"],
            "one part for all processes",
        ),
        (
            &["--nproc", "2", "--restarts", "1"],
            &train,
            "train-vae --out DIR --resume auto",
        ),
        (
            &[
                "--nproc",
                "2",
                "--nnodes",
                "2",
                "--master",
                "127.0.0.1:29400",
            ],
            &train,
            "set RDPM_TOKEN",
        ),
        (
            &["--nproc", "2", "--node-rank", "1"],
            &train,
            "counted from 0",
        ),
        (
            &["--nproc", "2", "--master", "here"],
            &train,
            "expected HOST:PORT",
        ),
        (&["--nproc", "2"], &["train-vae", "--no-such"], "--no-such"),
        (&["--nproc", "0"], &train, "--nproc"),
    ] {
        let output = lab.output(&launch(options, command));
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains(words), "{told}");
    }
    // What both ranks refuse is the job's own exit code.
    let output = lab.output(&launch(&["--nproc", "2"], &[VAE, "--data", "nowhere"]));
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(!lab.path("run").exists());
}
