//! A run that was stopped and resumed ends with the same bytes as an uninterrupted one.

use std::fs;
use std::os::unix::process::ExitStatusExt;

use crate::fixture::{GENERATOR, Lab, VAE, assert_same, send, stderr};

/// Killed after step 6, then interrupted after step 8, then run to its end.
fn resumed_run_is_the_uninterrupted_one(stage: &str) {
    let lab = Lab::new();
    lab.train(stage, "whole", &["--seed", "7"]);
    let start = lab.start(stage, "parts", &["--seed", "7"]);
    let mut child = lab.spawn_until(&start, "parts", 6);
    child.kill().expect("killed");
    child.wait().expect("gone");
    let resume = [stage, "--resume", "parts"];
    let child = lab.spawn_until(&resume, "parts", 8);
    send("-INT", child.id());
    let output = child.wait_with_output().expect("ended");
    // The run may have finished before the signal came. Or, if the killed run had already logged
    // step 8, it may not have been listening yet, and died of the signal.
    let died = output.status.signal() == Some(2);
    assert!(
        died || matches!(output.status.code(), Some(0 | 130)),
        "{}",
        stderr(&output)
    );
    // Different threads and workers do not change the result.
    lab.run(&[
        stage,
        "--resume",
        "parts",
        "--workers",
        "1",
        "--threads",
        "1",
    ]);
    assert_same(&lab.path("whole"), &lab.path("parts"));
}

#[test]
fn resume_is_bit_identical_for_the_tokenizer() {
    resumed_run_is_the_uninterrupted_one(VAE);
}

#[test]
fn resume_is_bit_identical_for_the_generator() {
    resumed_run_is_the_uninterrupted_one(GENERATOR);
}

/// Beyond the step at which the distribution of t is brought up to date for the first time, 64.
#[test]
fn resume_is_bit_identical_with_the_generators_options() {
    let lab = Lab::new();
    let options = [
        "--set",
        "generator.adaln_rank=8",
        "--set",
        "generator.perturb=0.3",
        "--set",
        "generator.timesteps=loss",
        "--set",
        "generator.dropout=0.2",
        "--set",
        "train_gen.lr_min=0.1",
    ];
    let to = |step| [&options[..], &["--steps", step]].concat();
    lab.train(GENERATOR, "whole", &to("72"));
    for (step, resumed) in [("60", "66"), ("66", "72")] {
        let run = format!("parts-{step}");
        lab.run(&lab.start(GENERATOR, &run, &to(step)));
        lab.run(&[GENERATOR, "--resume", &run, "--steps", resumed]);
        lab.run(&[GENERATOR, "--resume", &run, "--steps", "72"]);
        assert_same(&lab.path("whole"), &lab.path(&run));
    }
}

/// The same command again and again, as from a scheduler that requeues.
#[test]
fn auto_starts_a_run_and_goes_on_with_it() {
    let lab = Lab::new();
    for stage in [VAE, GENERATOR] {
        let (whole, parts) = (format!("{stage}-whole"), format!("{stage}-parts"));
        // The generator takes part of its configuration from the tokenizer.
        let seed = [
            "--seed",
            "7",
            "--set",
            "train_vae.log_every=1",
            "--set",
            "train_gen.log_every=1",
        ];
        lab.train(stage, &whole, &seed);
        let auto = [&seed[..], &["--resume", "auto"]].concat();
        let command = lab.start(stage, &parts, &auto);
        let mut child = lab.spawn_until(&command, &parts, 3);
        child.kill().expect("killed");
        child.wait().expect("gone");
        let child = lab.spawn_until(&command, &parts, 6);
        send("-INT", child.id());
        child.wait_with_output().expect("ended");
        lab.run(&command);
        assert_same(&lab.path(&whole), &lab.path(&parts));
        // A finished run has nothing to do.
        lab.run(&command);
        assert_same(&lab.path(&whole), &lab.path(&parts));
        for (more, words) in [
            (["--seed", "8"], "was started with seed 7"),
            (
                [
                    "--set",
                    if stage == VAE {
                        "train_vae.lr=0.5"
                    } else {
                        "train_gen.lr=0.5"
                    },
                ],
                "cannot change train_",
            ),
        ] {
            let mut other: Vec<&str> = command
                .iter()
                .copied()
                .filter(|a| !["--seed", "7"].contains(a))
                .collect();
            other.extend(more);
            let output = lab.output(&other);
            assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
            assert!(stderr(&output).contains(words), "{}", stderr(&output));
        }
        if stage == VAE {
            fs::rename(lab.path(&whole), lab.path("vae")).expect("renamed");
        }
    }
    let output = lab.output(&[
        VAE,
        "--config",
        "tiny.toml",
        "--data",
        "data",
        "--resume",
        "auto",
    ]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--out DIR"), "{}", stderr(&output));
}

#[test]
fn auto_passes_over_a_damaged_checkpoint() {
    let lab = Lab::new();
    let command = lab.start(VAE, "run", &["--resume", "auto"]);
    lab.run(&command);
    let file = lab.path("run/checkpoints/step-00000012/ema.safetensors");
    let mut bytes = fs::read(&file).expect("the checkpoint");
    *bytes.last_mut().expect("not empty") ^= 1;
    fs::write(&file, bytes).expect("damaged");
    let output = lab.output(&command);
    let told = stderr(&output);
    assert!(output.status.success(), "{told}");
    assert!(
        told.contains("ema.safetensors")
            && told.contains("continuing from run/checkpoints/step-00000010"),
        "{told}"
    );
}

#[test]
fn a_finished_run_goes_on_to_a_later_end() {
    let lab = Lab::new();
    lab.train(
        VAE,
        "whole",
        &["--set", "quantizer.restart_dead_codes=false"],
    );
    let short = [
        "--set",
        "quantizer.restart_dead_codes=false",
        "--steps",
        "7",
    ];
    lab.train(VAE, "parts", &short);
    lab.run(&[VAE, "--resume", "--out", "parts", "--steps", "12"]);
    // The shorter run logged its last step, 7; everything else is identical.
    let file = lab.path("parts/metrics.jsonl");
    let text = fs::read_to_string(&file).expect("metrics");
    let kept: Vec<&str> = text
        .lines()
        .filter(|l| !l.starts_with("{\"step\":7,"))
        .collect();
    assert_eq!(kept.len() + 1, text.lines().count());
    let last = |run: &str| {
        lab.path(run)
            .join("checkpoints/step-00000012/model.safetensors")
    };
    let [a, b] = ["whole", "parts"].map(|run| fs::read(last(run)).expect("the last checkpoint"));
    assert!(a == b);
}

/// The data is named by a path relative to the folder in which the run was started.
#[test]
fn a_run_goes_on_from_any_folder() {
    let lab = Lab::new();
    lab.train(VAE, "whole", &[]);
    lab.train(VAE, "parts", &["--steps", "3"]);
    let run = lab.path("parts");
    let elsewhere = tempfile::tempdir().expect("a folder");
    let resume = [
        VAE,
        "--resume",
        run.to_str().expect("UTF-8"),
        "--steps",
        "12",
    ];
    let mut command = lab.command(&resume);
    let output = command
        .current_dir(elsewhere.path())
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{}", stderr(&output));
    let last = |run: &str| {
        let name = "checkpoints/step-00000012/state.json";
        let text = fs::read(lab.path(run).join(name)).expect("the last checkpoint");
        let state: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        state["data"].clone()
    };
    assert_eq!(last("whole"), last("parts"));
}

#[test]
fn an_older_checkpoint_can_be_gone_back_to() {
    let lab = Lab::new();
    lab.train(GENERATOR, "whole", &[]);
    lab.train(GENERATOR, "again", &[]);
    lab.run(&[GENERATOR, "--resume", "again/checkpoints/step-00000005"]);
    assert_same(&lab.path("whole"), &lab.path("again"));
}

#[test]
fn a_resumed_run_keeps_its_configuration() {
    let lab = Lab::new();
    lab.train(VAE, "run", &["--steps", "2"]);
    for (arguments, told) in [
        (["--set", "train_vae.lr=1"], "train_vae.lr"),
        (["--seed", "3"], "keeps its own seed"),
        (["--config", "smoke"], "keeps its own configuration"),
    ] {
        let output = lab.output(&[&[VAE, "--resume", "run"], &arguments[..]].concat());
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(told), "{}", stderr(&output));
    }
    let output = lab.output(&[GENERATOR, "--resume", "run"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("train-vae"), "{}", stderr(&output));
}

#[test]
fn a_refused_resume_changes_nothing() {
    let lab = Lab::new();
    lab.train(GENERATOR, "run", &[]);
    let kept = ["metrics.jsonl", "config.toml", "checkpoints/latest"];
    let read = || kept.map(|name| fs::read(lab.path("run").join(name)).expect("a file of the run"));
    let before = read();
    for (more, told) in [
        (["--vae", "vae"], "--vae with --resume"),
        (["--data", "data/high"], "differs from the one"),
    ] {
        let from = ["train-gen", "--resume", "run/checkpoints/step-00000005"];
        let output = lab.output(&[&from[..], &more[..]].concat());
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(told), "{}", stderr(&output));
        assert!(read() == before, "{told}");
    }
}

#[test]
fn another_tokenizer_in_the_run_is_noticed() {
    let lab = Lab::new();
    lab.train(GENERATOR, "run", &["--steps", "2"]);
    lab.run(&[
        "export",
        "--vae",
        "vae/checkpoints/step-00000000",
        "--out",
        "run/tokenizer.safetensors",
    ]);
    for (line, code) in [
        (
            vec![
                GENERATOR, "--resume", "run", "--data", "data", "--steps", "3",
            ],
            2,
        ),
        (vec!["sample", "--model", "run", "--class", "high"], 1),
    ] {
        let output = lab.output(&line);
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert!(stderr(&output).contains("tokenizer"), "{}", stderr(&output));
        assert!(
            stderr(&output).contains("started with"),
            "{}",
            stderr(&output)
        );
    }
}

#[test]
fn a_checkpoint_can_be_named_from_inside_its_run() {
    let lab = Lab::new();
    lab.train(VAE, "run", &["--steps", "2"]);
    let data = lab.path("data").display().to_string();
    let more = ["--steps", "3", "--data", data.as_str()];
    for (folder, name) in [
        ("run", "checkpoints/step-00000002"),
        ("run/checkpoints", "step-00000003"),
    ] {
        let output = lab
            .command(&[&[VAE, "--resume", name], &more[..]].concat())
            .current_dir(lab.path(folder))
            .output()
            .expect("rdpm runs");
        assert!(output.status.success(), "{}", stderr(&output));
        let output = lab
            .command(&["reconstruct", &data, "--model", name])
            .current_dir(lab.path(folder))
            .output()
            .expect("rdpm runs");
        assert!(output.status.success(), "{}", stderr(&output));
    }
}

#[test]
fn a_run_that_is_shortened_is_a_finished_one() {
    let lab = Lab::new();
    let state = || fs::read_to_string(lab.path("run/checkpoints/step-00000005/state.json"));
    let process = lab.spawn_until(&lab.start(VAE, "run", &["--steps", "100000"]), "run", 6);
    send("-INT", process.id());
    let ended = process.wait_with_output().expect("its end");
    assert_eq!(ended.status.code(), Some(130));
    assert!(state().expect("a state").contains("\"finished\": false"));
    lab.run(&[
        VAE,
        "--resume",
        "run/checkpoints/step-00000005",
        "--steps",
        "5",
    ]);
    assert!(state().expect("a state").contains("\"finished\": true"));
}
