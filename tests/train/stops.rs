//! What stops a run, and what it leaves behind.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};

use crate::fixture::{GENERATOR, Lab, VAE, files, send, stderr};

/// Long enough to be stopped.
const LONG: [&str; 2] = ["--steps", "100000"];

#[test]
fn an_interrupt_saves_and_exits_with_130() {
    let lab = Lab::new();
    for (signal, out) in [("-INT", "a"), ("-TERM", "b"), ("-HUP", "c"), ("-USR1", "d")] {
        let child = lab.spawn_until(&lab.start(VAE, out, &LONG), out, 2);
        send(signal, child.id());
        // A closed terminal is signalled by both the kernel and a shell; a scheduler warns, and
        // then insists.
        match signal {
            "-HUP" => send(signal, child.id()),
            "-USR1" => send("-TERM", child.id()),
            _ => {}
        }
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

/// Under nohup a closed terminal ends nothing; other signals that a parent ignores for its children
/// stay ignored too.
#[test]
fn a_signal_that_was_ignored_at_the_start_stays_ignored() {
    let lab = Lab::new();
    let arguments = lab.start(VAE, "run", &LONG);
    let mut shell = lab.shell(&format!(
        "trap '' HUP USR1; exec \"$0\" {}",
        arguments.join(" ")
    ));
    let mut child = lab.wait_until(shell.stderr(Stdio::piped()), "run", 2);
    for signal in ["-HUP", "-USR1"] {
        send(signal, child.id());
    }
    let reached = lab.last_step("run");
    lab.until("the run goes on", || {
        lab.last_step("run") > reached.map(|s| s + 3)
    });
    assert!(child.try_wait().expect("a state").is_none());
    send("-TERM", child.id());
    let output = child.wait_with_output().expect("ended");
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
}

/// A shell at whose end the terminal closes: no failed write may end the run before it is saved.
#[test]
fn a_run_whose_stderr_is_gone_is_saved() {
    let lab = Lab::new();
    let arguments = lab.start(VAE, "run", &LONG);
    let mut child = lab.wait_until(lab.command(&arguments).stderr(Stdio::piped()), "run", 2);
    // From here on every write to stderr fails.
    drop(child.stderr.take());
    let reached = lab.last_step("run");
    lab.until("the run goes on", || {
        lab.last_step("run") > reached.map(|s| s + 3)
    });
    send("-HUP", child.id());
    assert_eq!(child.wait().expect("ended").code(), Some(130));
    let saved = fs::read_to_string(lab.path("run/checkpoints/latest")).expect("saved");
    assert_ne!(saved.trim(), "step-00000000");
    lab.run(&[VAE, "--resume", "run", "--steps", "1"]);
}

#[test]
fn a_cache_that_is_stopped_or_killed_while_it_is_made_is_completed_to_the_same_bytes() {
    let lab = Lab::new();
    lab.train(VAE, "vae", &["--steps", "3"]);
    lab.more_images(400);
    let start = |out, cache| {
        let cache = ["--steps", "1", "--cache", cache, "--cache-part", "50"];
        lab.start(GENERATOR, out, &cache)
    };
    lab.run(&start("whole", "whole.cache"));
    let whole = files(&lab.path("whole.cache"));
    assert_eq!(whole.len(), 17);
    let (cache, mut kept) = (lab.path("latents"), BTreeMap::new());
    for (signal, more) in [("-TERM", 1), ("-KILL", 2), ("-HUP", 3), ("-KILL", 1)] {
        let mut child = lab
            .command(&start("run", "latents"))
            .stderr(Stdio::piped())
            .spawn()
            .expect("rdpm starts");
        let expected = kept.len() + more;
        lab.until("parts come", || {
            let found = files(&cache);
            let is_partial = found.keys().any(|name| name.starts_with('.'));
            is_partial && found.len() > expected || child.try_wait().expect("waited").is_some()
        });
        send(signal, child.id());
        let output = child.wait_with_output().expect("ended");
        let told = stderr(&output);
        let found = files(&cache);
        if signal != "-KILL" {
            assert_eq!(output.status.code(), Some(130), "{told}");
            assert!(told.contains("images were encoded for the cache"), "{told}");
            assert!(
                told.contains("whole parts of") && told.contains("no step was done"),
                "{told}"
            );
            assert!(!found.keys().any(|name| name.starts_with('.')));
        }
        assert!(!lab.path("run").exists() && !found.contains_key("cache.json"));
        let before = kept.len();
        kept = found;
        kept.retain(|name, _| name.starts_with("part-"));
        // No part is made twice, and none is half.
        assert!(kept.len() >= before + more, "{signal}");
        assert!(kept.iter().all(|(name, bytes)| whole[name] == *bytes));
    }
    lab.run(&start("run", "latents"));
    assert!(files(&cache) == whole);
    // A part that was damaged is named; removed, it alone is made again.
    let part = cache.join("part-00003.safetensors");
    fs::write(&part, &whole["part-00003.safetensors"][..5000]).expect("written");
    let output = lab.output(&start("again", "latents"));
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains("part-00003.safetensors") && told.contains("it alone is made again"),
        "{told}"
    );
    fs::remove_file(&part).expect("removed");
    let made = |number: usize| {
        let path = cache.join(format!("part-{number:05}.safetensors"));
        fs::metadata(path).and_then(|file| file.modified()).ok()
    };
    let before = made(4);
    lab.run(&start("again", "latents"));
    assert!(files(&cache) == whole && made(4) == before);
}

#[test]
fn a_signal_ends_sampling_and_what_a_kill_leaves_is_swept() {
    let lab = Lab::new();
    lab.train(GENERATOR, "run", &[]);
    let sample = |out: &'static str| {
        let many = [
            "sample", "--model", "run", "--class", "all", "--num", "1000000",
        ];
        [&many[..], &["--out", out]].concat()
    };
    let hidden = |name: &str| lab.path(name).exists();
    for (signal, code) in [
        ("-TERM", Some(130)),
        ("-HUP", Some(130)),
        ("-USR1", Some(130)),
        ("-KILL", None),
    ] {
        for (out, partial) in [
            ("x.npz", ".x.npz.partial"),
            ("folder.v1", ".folder.v1.partial"),
        ] {
            let child = lab
                .command(&sample(out))
                .stderr(Stdio::piped())
                .spawn()
                .expect("rdpm starts");
            lab.until("pictures are made", || match out {
                "x.npz" => lab.path(partial).exists(),
                _ => fs::read_dir(lab.path(partial)).is_ok_and(|mut d| d.next().is_some()),
            });
            // Another command is still writing beside it and must be left alone.
            if signal == "-TERM" {
                lab.run(&[
                    "sample",
                    "--model",
                    "run",
                    "--class",
                    "0",
                    "--num",
                    "1",
                    "--out",
                    "living.png",
                ]);
                assert!(hidden(partial), "a living writer's file was swept");
            }
            send(signal, child.id());
            let output = child.wait_with_output().expect("ended");
            let told = stderr(&output);
            assert_eq!(output.status.code(), code, "{signal} {out}: {told}");
            assert!(
                code.is_none() || told.contains("nothing was written to"),
                "{told}"
            );
            assert_eq!(hidden(partial), signal == "-KILL", "{signal} {out}");
            assert!(!lab.path(out).exists());
        }
    }
    lab.run(&[
        "sample", "--model", "run", "--class", "0", "--num", "1", "--out", "one.png",
    ]);
    assert!(!hidden(".x.npz.partial") && !hidden(".folder.v1.partial"));
}

/// A failed deletion or write beside the checkpoints is a warning and does not end the run.
#[test]
fn a_failed_picture_metrics_line_or_deletion_warns_and_goes_on() {
    let lab = Lab::new();
    lab.train(VAE, "run", &["--steps", "5"]);
    // Cannot be removed, even by root: a folder is in the place of a file.
    let old = lab.path("run/checkpoints/step-00000001/state.json");
    fs::create_dir_all(old.join("in the way")).expect("a folder in the place of a file");
    let more = [
        "--steps",
        "9",
        "--set",
        "train_vae.image_every=2",
        "--set",
        "train_vae.checkpoint_every=2",
    ];
    fs::create_dir_all(lab.path("run/images/step-00000006.png")).expect("in a picture's way");
    fs::create_dir_all(lab.path("run/images/step-00000008.png/x")).expect("in a picture's way");
    let output = lab.output(&[&[VAE, "--resume", "run"][..], &more].concat());
    let told = stderr(&output);
    assert!(output.status.success(), "{told}");
    assert!(
        told.contains("step 6: no image:") && told.contains("step 8: no image:"),
        "{told}"
    );
    assert!(
        told.contains("cannot remove run/checkpoints/step-00000001"),
        "{told}"
    );
    let saved = fs::read_to_string(lab.path("run/checkpoints/latest")).expect("saved");
    assert_eq!(saved.trim(), "step-00000009");
}

#[test]
fn kill_nine_leaves_a_usable_checkpoint() {
    let lab = Lab::new();
    // A checkpoint per step, so that the kill usually interrupts one.
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
    fs::write(lab.path("run/checkpoints/step-00000014/state.json"), "{").expect("damaged");
    let output = lab.output(&[GENERATOR, "--resume", "run", "--or-older", "--steps", "14"]);
    let told = stderr(&output);
    assert!(output.status.success(), "{told}");
    assert!(told.contains(&format!("continuing from {older}")), "{told}");
}

/// A limit on the file size simulates a full disk: both end a write in the middle.
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
