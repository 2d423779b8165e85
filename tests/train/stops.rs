//! What stops a run, and what it leaves.

use std::fs;
use std::process::Command;

use crate::fixture::{GENERATOR, Lab, VAE, stderr};

/// Long enough to be stopped.
const LONG: [&str; 2] = ["--steps", "100000"];

#[test]
fn an_interrupt_saves_and_exits_with_130() {
    let lab = Lab::new();
    for (signal, out) in [("-INT", "a"), ("-TERM", "b")] {
        let child = lab.spawn_until(&lab.start(VAE, out, &LONG), out, 2);
        let sent = Command::new("kill")
            .args([signal, &child.id().to_string()])
            .status();
        assert!(sent.expect("kill runs").success());
        let output = child.wait_with_output().expect("ended");
        assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
        let told = stderr(&output);
        assert!(told.contains(&format!("--resume {out}")), "{told}");
        let saved = fs::read_to_string(lab.path(out).join("checkpoints/latest")).expect("saved");
        let step: u64 = saved
            .trim()
            .trim_start_matches("step-")
            .parse()
            .expect("a step");
        assert!(step >= 2, "{saved}");
    }
}

#[test]
fn kill_nine_leaves_a_usable_checkpoint() {
    let lab = Lab::new();
    // A checkpoint a step: the kill falls into the middle of one more often than not.
    let every = [
        "--set",
        "train_vae.checkpoint_every=1",
        "--set",
        "train_vae.log_every=1",
    ];
    let start = lab.start(VAE, "run", &[&LONG[..], &every].concat());
    let mut child = lab.spawn_until(&start, "run", 1);
    for round in 1..6 {
        std::thread::sleep(std::time::Duration::from_millis(17 * round));
        child.kill().expect("killed");
        child.wait().expect("gone");
        let at = fs::read_to_string(lab.path("run/checkpoints/latest")).expect("latest");
        let step: u64 = at
            .trim()
            .trim_start_matches("step-")
            .parse()
            .expect("a step");
        child = lab.spawn_until(&[VAE, "--resume", "run"], "run", step + 1);
    }
    child.kill().expect("killed");
    child.wait().expect("gone");
}

#[test]
fn a_second_process_on_one_run_is_refused() {
    let lab = Lab::new();
    let mut first = lab.spawn_until(&lab.start(VAE, "run", &LONG), "run", 2);
    let output = lab.output(&[VAE, "--resume", "run"]);
    first.kill().expect("killed");
    first.wait().expect("gone");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("another process"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_run_that_diverges_stops_and_names_its_last_checkpoint() {
    let lab = Lab::new();
    lab.train(VAE, "vae", &["--steps", "3"]);
    for stage in [VAE, GENERATOR] {
        let section = if stage == VAE {
            "train_vae"
        } else {
            "train_gen"
        };
        let sets = ["lr=1e38", "max_bad_steps=3", "warmup_steps=1"];
        let sets: Vec<String> = sets.iter().map(|set| format!("{section}.{set}")).collect();
        let more: Vec<&str> = sets
            .iter()
            .flat_map(|set| ["--set", set.as_str()])
            .collect();
        let output = lab.output(&lab.start(stage, section, &more));
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains("3 steps in a row"), "{told}");
        assert!(
            told.contains(&format!("{section}/checkpoints/step-00000000")),
            "{told}"
        );
    }
}

#[test]
fn a_damaged_checkpoint_is_refused_and_the_one_before_it_works() {
    let lab = Lab::new();
    lab.train(GENERATOR, "run", &[]);
    let file = lab.path("run/checkpoints/step-00000012/optimizer.safetensors");
    let mut bytes = fs::read(&file).expect("the checkpoint");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    fs::write(&file, bytes).expect("damaged");
    let output = lab.output(&[GENERATOR, "--resume", "run", "--steps", "14"]);
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains("step-00000012/optimizer.safetensors"),
        "{told}"
    );
    let older = "run/checkpoints/step-00000010";
    assert!(told.contains(&format!("--resume {older}")), "{told}");
    lab.run(&[GENERATOR, "--resume", older, "--steps", "14"]);
}

/// A limit on the size of a file stands for a full disk: both end a write in its middle.
#[test]
fn a_full_disk_fails_with_the_path_and_keeps_what_was_there() {
    let lab = Lab::new();
    lab.train(VAE, "run", &["--steps", "5"]);
    let script = format!(
        "trap '' XFSZ; ulimit -f 64; exec {} {VAE} --resume run --steps 10",
        env!("CARGO_BIN_EXE_rdpm")
    );
    let output = Command::new("sh")
        .args(["-c", &script])
        .current_dir(lab.path(""))
        .output()
        .expect("a shell");
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains("cannot write") && told.contains("step-00000010"),
        "{told}"
    );
    let left: Vec<String> = fs::read_dir(lab.path("run/checkpoints"))
        .expect("checkpoints")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .filter(|name| name.contains("00000010") || name.contains("partial"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    lab.run(&[VAE, "--resume", "run", "--steps", "10"]);
}
