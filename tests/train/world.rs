//! Several processes that train together: the same bytes as one, and one end for all.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use rdpm::world::Port;

use crate::fixture::{GENERATOR, Lab, VAE, assert_same, files, metrics, stderr};
use crate::processes::Ranks;

/// Four micro-batches a step, for both stages, and all that adds up over them.
const FOUR: [&str; 10] = [
    "--set",
    "train_vae.batch_size=8",
    "--set",
    "train_vae.accumulate=4",
    "--set",
    "train_gen.batch_size=8",
    "--set",
    "train_gen.accumulate=4",
    "--set",
    "generator.timesteps=loss",
];

/// Long enough to be stopped, with a line a step.
const LONG: [&str; 4] = ["--steps", "100000", "--set", "train_vae.log_every=1"];

/// Starts `size` processes that train together; `own` has more arguments of a rank.
fn started<'a>(
    lab: &Lab,
    size: usize,
    arguments: &[&'a str],
    own: impl Fn(usize) -> Vec<&'a str>,
) -> Ranks {
    Ranks::start(size, |rank| lab.command(&[arguments, &own(rank)].concat()))
}

/// Runs `size` processes to their end, each of which must succeed; only the first says anything.
fn run(lab: &Lab, size: usize, arguments: &[&str]) {
    for (rank, output) in started(lab, size, arguments, |_| vec![])
        .end()
        .iter()
        .enumerate()
    {
        assert!(output.status.success(), "rank {rank}: {}", stderr(output));
        assert_eq!(rank == 0, !output.stdout.is_empty(), "rank {rank}");
        assert_eq!(
            rank == 0,
            !output.stderr.is_empty(),
            "rank {rank}: {}",
            stderr(output)
        );
    }
}

/// From the first step to the last with 1, 2 and 4 processes; and begun by 4, gone on from step 5
/// by 2 and from step 10 by 1.
fn the_same_with_any_number_of_processes(stage: &str) {
    let lab = Lab::new();
    if stage == GENERATOR {
        lab.train(VAE, "vae", &["--steps", "3"]);
    }
    // So many that some are never chosen.
    let codes = ["--set", "quantizer.codebook_size=512"];
    let more = match stage {
        VAE => [&FOUR[..], &codes].concat(),
        _ => FOUR.to_vec(),
    };
    lab.run(&lab.start(stage, "one", &more));
    for (size, out) in [(2, "two"), (4, "four")] {
        run(&lab, size, &lab.start(stage, out, &more));
        assert_same(&lab.path("one"), &lab.path(out));
    }
    let after = |step: u64| format!("four/checkpoints/step-{step:08}");
    run(&lab, 2, &[stage, "--resume", &after(5)]);
    lab.run(&[stage, "--resume", &after(10)]);
    assert_same(&lab.path("one"), &lab.path("four"));
    let lines = metrics(&lab.path("one"));
    if stage == VAE {
        let some = |key: &str| {
            lines
                .iter()
                .any(|line| line[key].as_f64().is_some_and(|x| x > 0.0))
        };
        assert!(some("codes_restarted") && some("disc_loss"), "{lines:?}");
    }
}

#[test]
fn the_tokenizer_is_the_same_with_any_number_of_processes() {
    the_same_with_any_number_of_processes(VAE);
}

#[test]
fn the_generator_is_the_same_with_any_number_of_processes() {
    the_same_with_any_number_of_processes(GENERATOR);
}

#[test]
fn a_cache_of_latents_is_made_by_all_to_the_same_bytes_and_read_by_all() {
    let lab = Lab::new();
    lab.train(VAE, "vae", &["--steps", "3"]);
    let four = |out, cache| {
        let mut arguments = lab.start(GENERATOR, out, &FOUR);
        arguments.extend(["--steps", "4", "--cache", cache, "--cache-part", "4"]);
        arguments
    };
    lab.run(&four("one", "alone"));
    let alone = files(&lab.path("alone"));
    // 18 images in five parts.
    assert_eq!(alone.len(), 6);
    for (size, out, cache) in [(2, "two", "latents-2"), (4, "four", "latents-4")] {
        run(&lab, size, &four(out, cache));
        assert!(files(&lab.path(cache)) == alone);
    }
    let made = |name| fs::metadata(lab.path("alone").join(name)).and_then(|file| file.modified());
    let before = alone.keys().map(|name| made(name).expect("a time"));
    let before: Vec<_> = before.collect();
    run(&lab, 4, &four("read", "alone"));
    let after = alone.keys().map(|name| made(name).expect("a time"));
    assert!(after.eq(before));
    assert_same(&lab.path("one"), &lab.path("read"));
}

#[test]
fn a_signal_to_one_rank_stops_all_that_make_a_cache() {
    let lab = Lab::new();
    lab.train(VAE, "vae", &["--steps", "3"]);
    lab.more_images(400);
    let start = |out, cache| {
        let mut arguments = lab.start(GENERATOR, out, &FOUR);
        arguments.extend(["--steps", "1", "--cache", cache, "--cache-part", "50"]);
        arguments
    };
    let cache = lab.path("latents");
    let whole = || {
        let names = files(&cache).into_keys();
        names.filter(|name| name.starts_with("part-")).count()
    };
    for signal in ["-TERM", "-KILL"] {
        let before = whole();
        let ranks = started(&lab, 2, &start("run", "latents"), |_| vec![]);
        lab.until("parts come", || whole() > before + 1);
        ranks.send(signal, 1);
        for (rank, output) in ranks.end().iter().enumerate() {
            let told = stderr(output);
            if signal == "-TERM" {
                assert_eq!(output.status.code(), Some(130), "rank {rank}: {told}");
                let says = told.contains("latents are kept and no step was done");
                assert_eq!(says, rank == 0, "rank {rank}: {told}");
            }
            assert!(!output.status.success());
        }
        let half = files(&cache).keys().any(|name| name.starts_with('.'));
        assert!(signal != "-TERM" || !half);
        assert!(!lab.path("run").exists() && !cache.join("cache.json").exists());
    }
    run(&lab, 2, &start("run", "latents"));
    lab.run(&start("one", "alone"));
    assert!(files(&cache) == files(&lab.path("alone")));
}

/// As each launcher sets the environment of two processes on one machine.
#[test]
fn every_launcher_starts_a_run() {
    let lab = Lab::new();
    let reserved = Port::reserve().expect("a port");
    let port = reserved.number();
    let launchers: [&[(&str, &str)]; 4] = [
        // torchrun, whose own port is the one before.
        &[
            ("RANK", "{rank}"),
            ("WORLD_SIZE", "2"),
            ("LOCAL_RANK", "{rank}"),
            ("LOCAL_WORLD_SIZE", "2"),
            ("MASTER_ADDR", "localhost"),
            ("MASTER_PORT", "{before}"),
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
            ("TORCHELASTIC_RUN_ID", "none"),
        ],
        // Open MPI
        &[
            ("OMPI_COMM_WORLD_RANK", "{rank}"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "{rank}"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
            ("PMIX_NAMESPACE", "{port}"),
        ],
        // MPICH
        &[
            ("PMI_RANK", "{rank}"),
            ("PMI_SIZE", "2"),
            ("MPI_LOCALRANKID", "{rank}"),
            ("MPI_LOCALNRANKS", "2"),
            ("RDPM_PORT", "{port}"),
        ],
        // srun
        &[
            ("SLURM_PROCID", "{rank}"),
            ("SLURM_STEP_NUM_TASKS", "2"),
            ("SLURM_LOCALID", "{rank}"),
            ("SLURM_STEP_TASKS_PER_NODE", "2"),
            ("SLURM_STEP_NUM_NODES", "1"),
            ("SLURM_STEP_NODELIST", "node[17]"),
            ("SLURM_JOB_ID", "{port}"),
            ("SLURM_STEP_ID", "0"),
        ],
    ];
    for (i, variables) in launchers.iter().enumerate() {
        let own = |rank: usize| {
            let fill = |text: &str| {
                let text = text.replace("{rank}", &rank.to_string());
                let text = text.replace("{before}", &(port - 1).to_string());
                text.replace("{port}", &port.to_string())
            };
            variables
                .iter()
                .map(|(name, text)| (*name, fill(text)))
                .collect()
        };
        let out = format!("run-{i}");
        let arguments = lab.start(VAE, &out, &["--steps", "1"]);
        for output in Ranks::start_with(2, |_| lab.command(&arguments), own).end() {
            assert!(output.status.success(), "{}", stderr(&output));
        }
        assert!(lab.path(&out).join("checkpoints/step-00000001").exists());
    }
}

/// A signal to one rank stops all, after a checkpoint.
#[test]
fn a_signal_to_one_rank_stops_all_after_a_checkpoint() {
    let lab = Lab::new();
    let ranks = started(
        &lab,
        2,
        &lab.start(VAE, "run", &[&FOUR[..], &LONG].concat()),
        |_| vec![],
    );
    lab.until("step 3 comes", || lab.last_step("run") >= Some(3));
    ranks.send("-TERM", 1);
    for (rank, output) in ranks.end().iter().enumerate() {
        let told = stderr(output);
        assert_eq!(output.status.code(), Some(130), "rank {rank}: {told}");
        assert_eq!(
            told.contains("continue with: rdpm train-vae --resume run"),
            rank == 0,
            "{told}"
        );
    }
    let saved = fs::read_to_string(lab.path("run/checkpoints/latest")).expect("saved");
    let logged = lab.last_step("run").expect("a line");
    assert_eq!(saved.trim(), format!("step-{logged:08}"));
}

/// Whichever rank is killed, the others end and name it, and the run can go on.
#[test]
fn a_killed_rank_ends_all_and_is_named() {
    let lab = Lab::new();
    let every = ["--set", "train_vae.checkpoint_every=2"];
    for (victim, out) in [(0, "a"), (2, "b")] {
        let arguments = lab.start(VAE, out, &[&FOUR[..], &LONG, &every].concat());
        let ranks = started(&lab, 4, &arguments, |_| vec![]);
        lab.until("step 3 comes", || lab.last_step(out) >= Some(3));
        ranks.send("-KILL", victim);
        let begin = Instant::now();
        for (rank, output) in ranks.end().iter().enumerate() {
            if rank == victim {
                continue;
            }
            let told = stderr(output);
            assert_eq!(output.status.code(), Some(1), "rank {rank}: {told}");
            let (_, text) = told
                .split_once(&format!("error: rank {victim} ("))
                .expect(&told);
            let (_, text) = text.split_once(") stopped after step ").expect(&told);
            let (step, text) = text.split_once(": ").expect(&told);
            assert!(step.parse::<u64>().expect(step) >= 3, "{told}");
            assert!(
                text.starts_with("its connection closed, as if it was killed"),
                "{told}"
            );
            assert!(
                told.contains("hint: ") && told.matches("error: ").count() == 1,
                "{told}"
            );
        }
        assert!(begin.elapsed() < Duration::from_secs(40));
        let step = lab.last_step(out).expect("a line") + 2;
        lab.run(&[VAE, "--resume", out, "--steps", &step.to_string()]);
    }
}

/// Reading an image waits for ever, as from a file server that is gone.
#[test]
fn a_step_that_hangs_ends_all_and_its_rank_is_named() {
    // Far above any step's time on a busy machine.
    let more = [&FOUR[..], &LONG, &["--timeout", "15"]].concat();
    let labs = [Lab::new(), Lab::new()];
    let child = labs[0].spawn_until(&labs[0].start(VAE, "run", &more), "run", 1);
    let ranks = started(&labs[1], 2, &labs[1].start(VAE, "run", &more), |_| vec![]);
    labs[1].until("step 1 comes", || labs[1].last_step("run") >= Some(1));
    for lab in &labs {
        let (pipe, image) = (lab.path("pipe"), lab.path("data/high/3.png"));
        let made = Command::new("mkfifo").arg(&pipe).status();
        assert!(made.expect("mkfifo runs").success());
        fs::rename(&pipe, &image).expect("it takes the image's place");
    }
    let hung = |told: &str| told.contains("error: step ") && told.contains("and does not end");
    let output = child.wait_with_output().expect("it ends");
    let told = stderr(&output);
    assert!(output.status.code() == Some(1) && hung(&told), "{told}");
    let outputs = ranks.end();
    let told = [0, 1].map(|rank| stderr(&outputs[rank]));
    let victim = (0..2).find(|rank| hung(&told[*rank])).expect(&told[0]);
    let other = &told[1 - victim];
    assert!(
        other.contains(&format!("error: rank {victim} (")),
        "{other}"
    );
    assert!(
        other.contains("and does not end") && !hung(other),
        "{other}"
    );
    assert!(outputs.iter().all(|output| output.status.code() == Some(1)));
}

#[test]
fn a_rank_that_fails_is_quoted_by_the_others() {
    let lab = Lab::new();
    // It cannot open what it is to train on.
    let more = |rank| match rank {
        1 => vec!["--data", "nowhere"],
        _ => vec![],
    };
    for (rank, output) in started(&lab, 2, &lab.start(VAE, "run", &[]), more)
        .end()
        .iter()
        .enumerate()
    {
        let told = stderr(output);
        assert!(
            !output.status.success() && told.contains("nowhere"),
            "rank {rank}: {told}"
        );
        assert_eq!(
            rank != 1,
            told.contains("error: rank 1 ("),
            "rank {rank}: {told}"
        );
    }
    // Another seed: all find out at the same time.
    let more = |rank| match rank {
        1 => vec!["--seed", "3"],
        _ => vec![],
    };
    let outputs = started(&lab, 2, &lab.start(VAE, "run", &FOUR), more).end();
    for output in outputs {
        let told = stderr(&output);
        assert!(told.contains("has the seed 3, but rank 0 ("), "{told}");
        assert!(!output.status.success());
    }
    assert!(!lab.path("run").exists());
}

#[test]
fn micro_batches_that_cannot_be_divided_are_raised_or_refused() {
    let lab = Lab::new();
    let set = |text| vec!["--set", text];
    let one = lab.start(
        VAE,
        "run",
        &["--steps", "1", "--set", "train_vae.accumulate=1"],
    );
    let outputs = started(&lab, 2, &one, |_| vec![]).end();
    let told = stderr(&outputs[0]);
    assert!(told.contains("accumulate is 1: raised to 2"), "{told}");
    let saved = fs::read_to_string(lab.path("run/config.toml")).expect("saved");
    let (_, section) = saved.split_once("[train_vae]").expect("its section");
    let accumulate = section.lines().find(|line| line.starts_with("accumulate"));
    assert_eq!(accumulate, Some("accumulate = 2"), "{saved}");
    // The same command goes on with what the run has.
    let again = [&one[..], &["--resume", "auto"]].concat();
    for output in started(&lab, 2, &again, |_| vec![]).end() {
        assert!(output.status.success(), "{}", stderr(&output));
    }
    let arguments = lab.start(VAE, "other", &FOUR);
    for output in started(&lab, 3, &arguments, |_| set("train_vae.batch_size=12")).end() {
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains("--set train_vae.accumulate=3"), "{told}");
    }
    for output in started(&lab, 4, &[VAE, "--resume", "run"], |_| vec![]).end() {
        assert!(
            stderr(&output).contains("go on with a number of processes"),
            "{}",
            stderr(&output)
        );
    }
}

#[test]
fn a_run_that_diverges_ends_at_all_ranks() {
    let lab = Lab::new();
    let more = [
        "--set",
        "train_vae.lr=1e38",
        "--set",
        "train_vae.max_bad_steps=3",
    ];
    let arguments = lab.start(VAE, "run", &[&FOUR[..], &more].concat());
    for (rank, output) in started(&lab, 2, &arguments, |_| vec![])
        .end()
        .iter()
        .enumerate()
    {
        let told = stderr(output);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert_eq!(
            rank == 0,
            told.contains("3 steps in a row"),
            "rank {rank}: {told}"
        );
    }
}

#[cfg(target_os = "linux")]
#[test]
fn one_process_has_no_socket_and_no_thread_for_others() {
    let lab = Lab::new();
    let mut child = lab.spawn_until(&lab.start(VAE, "run", &LONG), "run", 2);
    let process = format!("/proc/{}", child.id());
    let entries = |of: &str| fs::read_dir(format!("{process}/{of}")).expect("it runs");
    let open: Vec<String> = entries("fd")
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .map(|link| link.display().to_string())
        .collect();
    let threads: Vec<String> = entries("task")
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("comm")).ok())
        .collect();
    child.kill().expect("killed");
    child.wait().expect("gone");
    assert!(
        open.iter().any(|link| link.ends_with("metrics.jsonl")),
        "{open:?}"
    );
    assert!(
        !open.iter().any(|link| link.starts_with("socket:")),
        "{open:?}"
    );
    assert!(
        threads.iter().any(|name| name.starts_with("rdpm-load")),
        "{threads:?}"
    );
    let others = ["rdpm-watch", "rdpm-beat"];
    assert!(
        !threads
            .iter()
            .any(|name| others.iter().any(|o| name.starts_with(o))),
        "{threads:?}"
    );
}
