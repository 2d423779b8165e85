//! What a run's results must not depend on, and the errors for users' mistakes.

use std::collections::{BTreeMap, HashMap};
use std::fs;

use candle_core::{DType, Device, Tensor};
use rdpm::store::bundle::Bundle;

use crate::fixture::{GENERATOR, Lab, VAE, assert_same, metrics, stderr};

#[test]
fn two_runs_of_one_seed_are_the_same_and_of_two_are_not() {
    let lab = Lab::new();
    lab.train(VAE, "a", &["--steps", "4", "--workers", "1"]);
    lab.train(VAE, "b", &["--steps", "4", "--workers", "3"]);
    lab.train(VAE, "c", &["--steps", "4", "--seed", "1"]);
    assert_same(&lab.path("a"), &lab.path("b"));
    assert_ne!(metrics(&lab.path("a")), metrics(&lab.path("c")));
}

/// With the first level, and with both: the second has attention.
#[test]
fn a_tokenizer_that_recomputes_is_the_same() {
    let lab = Lab::new();
    lab.train(VAE, "kept", &["--steps", "3", "--set", "loss.disc_start=1"]);
    for levels in [1, 2] {
        let (run, set) = (
            format!("again-{levels}"),
            format!("train_vae.recompute_levels={levels}"),
        );
        let more = ["--steps", "3", "--set", "loss.disc_start=1", "--set", &set];
        lab.train(VAE, &run, &more);
        assert_same(&lab.path("kept"), &lab.path(&run));
    }
}

/// A file of weights in the lab.
fn tensors(lab: &Lab, name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(lab.path(name), &Device::Cpu).expect("a checkpoint")
}

fn values(tensor: &Tensor) -> Vec<f32> {
    let flat = tensor.flatten_all().and_then(|flat| flat.to_vec1());
    flat.expect("values")
}

fn moments(lab: &Lab, run: &str) -> BTreeMap<String, Tensor> {
    let file = lab
        .path(run)
        .join("checkpoints/step-00000001/optimizer.safetensors");
    let tensors = candle_core::safetensors::load(file, &Device::Cpu).expect("a checkpoint");
    tensors
        .into_iter()
        .filter(|(name, _)| name.starts_with("exp_avg."))
        .collect()
}

/// The first moment after one step is the gradient times 1 − β₁.
#[test]
fn accumulated_micro_batches_are_the_big_batch() {
    let lab = Lab::new();
    lab.train(VAE, "vae", &["--steps", "3"]);
    for stage in [VAE, GENERATOR] {
        let section = if stage == VAE {
            "train_vae"
        } else {
            "train_gen"
        };
        for accumulate in [1, 2] {
            let set = format!("{section}.accumulate={accumulate}");
            let run = format!("{section}-{accumulate}");
            // The discriminator starts after the end: its BatchNorm uses the micro-batch.
            let more = ["--steps", "1", "--set", &set, "--set", "loss.disc_start=9"];
            lab.train(stage, &run, &more);
        }
        let [one, two] = [1, 2].map(|n| moments(&lab, &format!("{section}-{n}")));
        assert!(one.len() > 10 && one.keys().eq(two.keys()));
        let square = |x: &Tensor| -> f64 {
            let x = x.to_dtype(DType::F64).and_then(|x| x.sqr()?.sum_all());
            x.and_then(|x| x.to_scalar()).expect("a sum")
        };
        let (mut difference, mut size) = (0.0, 0.0);
        for (name, a) in &one {
            difference += square(&(a - &two[name]).expect("equal shapes"));
            size += square(a);
        }
        let relative = (difference / size).sqrt();
        assert!(size > 0.0 && relative < 1e-6, "{stage}: {relative}");
    }
}

#[test]
fn a_generator_needs_nothing_but_its_run() {
    let lab = Lab::new();
    lab.train(GENERATOR, "run", &["--steps", "3"]);
    fs::remove_dir_all(lab.path("vae")).expect("removed");
    lab.run(&[GENERATOR, "--resume", "run", "--steps", "4"]);
}

#[test]
fn mistakes_are_answered_with_the_remedy() {
    let lab = Lab::new();
    let cases: [(&[&str], &str, &str); 5] = [
        (
            &[VAE, "--config", "tiny.toml"],
            "no training images",
            "--data PATH",
        ),
        (
            &[
                VAE,
                "--config",
                "tiny.toml",
                "--data",
                "data",
                "--set",
                "loss.perceptual=lpips",
            ],
            "VGG16",
            "--vgg FILE",
        ),
        (
            &[
                VAE,
                "--config",
                "tiny.toml",
                "--data",
                "data",
                "--set",
                "train_vae.compute_type=bf16",
            ],
            "needs CUDA",
            "compute_type=f32",
        ),
        (
            &[GENERATOR, "--config", "tiny.toml", "--data", "data"],
            "--vae",
            "--vae",
        ),
        (&[VAE, "--resume"], "without a run", "--resume RUN"),
    ];
    for (arguments, problem, remedy) in cases {
        let output = lab.output(arguments);
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {told}");
        assert!(
            told.contains(problem) && told.contains(remedy),
            "{arguments:?}: {told}"
        );
    }
}

#[test]
fn a_cached_run_sees_the_same_examples_and_a_stale_cache_is_refused() {
    let lab = Lab::new();
    lab.train(GENERATOR, "plain", &["--steps", "4"]);
    lab.train(GENERATOR, "made", &["--steps", "4", "--cache", "latents"]);
    lab.train(GENERATOR, "read", &["--steps", "4", "--cache", "latents"]);
    assert_same(&lab.path("made"), &lab.path("read"));
    let loss = |run: &str| metrics(&lab.path(run))[0]["loss"].as_f64().expect("a loss");
    let (plain, cached) = (loss("plain"), loss("made"));
    // They differ only by bf16 rounding.
    assert!(
        (plain - cached).abs() < 0.02 * plain,
        "{plain} and {cached}"
    );
    // A resumed run uses the cache without being told.
    lab.run(&[GENERATOR, "--resume", "made", "--steps", "6"]);
    let output = lab.output(&[
        GENERATOR, "--resume", "plain", "--steps", "6", "--cache", "latents",
    ]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    // The latents of another tokenizer.
    lab.run(&lab.start(VAE, "other", &["--steps", "1", "--seed", "5"]));
    let arguments = ["--cache", "latents", "--vae", "other"];
    let start = [
        GENERATOR,
        "--config",
        "tiny.toml",
        "--data",
        "data",
        "--out",
        "stale",
    ];
    let output = lab.output(&[&start[..], &arguments].concat());
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("stale"), "{}", stderr(&output));
}

/// All of them would get one code, and the generator would predict it without a mistake.
#[test]
fn latents_that_are_not_finite_end_the_run_and_name_the_image() {
    let lab = Lab::new();
    lab.train(VAE, "vae", &["--steps", "1"]);
    lab.run(&["export", "--vae", "vae", "--out", "good.safetensors"]);
    let mut bundle = Bundle::read(&lab.path("good.safetensors")).expect("a bundle");
    let weight = bundle.tokenizer.get_mut("encoder.conv_in.weight");
    let weight = weight.expect("the encoder's first weight");
    *weight = (weight.ones_like().expect("ones") * 3e38).expect("too large");
    let bad = lab.path("bad.safetensors");
    bundle.write(&bad, false).expect("a bundle");
    let start = [GENERATOR, "--config", "tiny.toml", "--data", "data"];
    for more in [&[][..], &["--cache", "latents"]] {
        let arguments = ["--vae", "bad.safetensors", "--out", "run"];
        let output = lab.output(&[&start[..], &arguments, more].concat());
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{told}");
        for words in [
            "image `",
            "its latents are not finite",
            "hint: the model has diverged",
        ] {
            assert!(told.contains(words), "{told}");
        }
        fs::remove_dir_all(lab.path("run")).ok();
    }
}

#[test]
fn a_dry_run_says_what_a_run_takes_and_makes_nothing() {
    let lab = Lab::new();
    lab.train(VAE, "vae", &["--steps", "1"]);
    for stage in [VAE, GENERATOR] {
        let output = lab.output(&lab.start(stage, "none", &["--dry-run"]));
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{}", stderr(&output));
        for word in [
            "parameters",
            "memory",
            "FLOP a step",
            "12 steps, 2.67 epochs of 18",
        ] {
            assert!(told.contains(word), "{word}: {told}");
        }
        assert!(!lab.path("none").exists());
        let output = lab.output(&lab.start(stage, "none", &["--dry-run", "--init", "absent.pth"]));
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(
            stderr(&output).contains("absent.pth"),
            "{}",
            stderr(&output)
        );
    }
}

#[test]
fn a_tokenizer_starts_from_what_fits_of_a_file() {
    let lab = Lab::new();
    lab.train(VAE, "first", &["--steps", "2"]);
    let file = "first/checkpoints/step-00000002/model.safetensors";
    let sets = [
        "--steps",
        "1",
        "--set",
        "quantizer.codebook_size=8",
        "--set",
        "train_vae.lr=1e-9",
    ];
    let output = lab.output(&lab.start(VAE, "second", &[&sets[..], &["--init", file]].concat()));
    let told = stderr(&output);
    assert!(output.status.success(), "{told}");
    assert!(
        told.contains("from scratch: quantize.embedding.weight ([8, 4], the file has [24, 4])"),
        "{told}"
    );
    assert_eq!(told.matches("from scratch:").count(), 1, "{told}");
    let read = |name: &str| tensors(&lab, name);
    let (from, to) = (
        read(file),
        read("second/checkpoints/step-00000000/ema.safetensors"),
    );
    let name = "encoder.conv_in.weight";
    assert_eq!(values(&from[name]), values(&to[name]));
    // A bundle's names begin with the part that they belong to.
    lab.run(&["export", "--vae", "first", "--out", "bundle.safetensors"]);
    let bundle = ["--init", "bundle.safetensors"];
    let output = lab.output(&lab.start(VAE, "third", &[&sets[..], &bundle].concat()));
    let told = stderr(&output);
    assert_eq!(told.matches("from scratch:").count(), 1, "{told}");
    let output = lab.output(&lab.start(VAE, "fourth", &["--init", "tiny.toml"]));
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
}

/// With restarts of dead codes and a discriminator due: neither touches what makes the latents.
#[test]
fn a_decoder_trained_alone_keeps_the_codes() {
    let lab = Lab::new();
    lab.train(VAE, "whole", &["--steps", "4"]);
    let alone = ["--steps", "6", "--set", "loss.decoder_only=true"];
    lab.train(
        VAE,
        "finished",
        &[&alone[..], &["--init", "whole"]].concat(),
    );
    let read = |name: &str| tensors(&lab, name);
    let before = read("whole/checkpoints/step-00000004/ema.safetensors");
    for file in ["model", "ema"] {
        let after = read(&format!(
            "finished/checkpoints/step-00000006/{file}.safetensors"
        ));
        for (name, tensor) in &before {
            let trained = name.starts_with("decoder.") || name.starts_with("post_quant_conv.");
            let same = values(tensor) == values(&after[name]);
            assert_eq!(same, !trained, "{file}: {name}");
        }
    }
    let output = lab.output(&lab.start(VAE, "nothing", &alone));
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("--init FILE"));
    let model = "whole/checkpoints/step-00000004/model.safetensors";
    for (init, set, lost) in [
        ("whole", "schedule.kind=sin", "the same [schedule]"),
        ("whole", "quantizer.steps=4", "the same [quantizer]"),
        (
            "whole",
            "quantizer.codebook_size=8",
            "`quantize.embedding.weight`",
        ),
        (model, "loss.disc_weight=0.5", "its configuration"),
    ] {
        let more = [&alone[..], &["--init", init, "--set", set]].concat();
        let output = lab.output(&lab.start(VAE, "other", &more));
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(lost), "{}", stderr(&output));
    }
}

/// The discriminator learns at its own rate times what the schedule leaves of the tokenizer's.
#[test]
fn the_discriminators_rate_follows_the_schedule() {
    let lab = Lab::new();
    let weights = |run: &str, step: u64| {
        let file = format!("{run}/checkpoints/step-{step:08}/optimizer.safetensors");
        let tensors = candle_core::safetensors::load(lab.path(&file), &Device::Cpu);
        let mut tensors: Vec<(String, Tensor)> =
            tensors.expect("a checkpoint").into_iter().collect();
        tensors.retain(|(name, _)| name.starts_with("discriminator.") && name.ends_with("weight"));
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        let (_, first) = tensors.first().expect("a discriminator");
        first
            .flatten_all()
            .and_then(|t| t.to_vec1::<f32>())
            .expect("values")
    };
    // The last of six steps of a cosine is hardly one; of a constant rate it is as large as any.
    let moved = |schedule: &str| {
        let set = format!("train_vae.lr_schedule={schedule}");
        let more = [
            "--steps",
            "6",
            "--set",
            &set,
            "--set",
            "train_vae.checkpoint_every=1",
        ];
        lab.train(VAE, schedule, &more);
        let [before, after] = [5, 6].map(|step| weights(schedule, step));
        let moves = before.iter().zip(&after).map(|(a, b)| (a - b).abs());
        moves.fold(0.0, f32::max)
    };
    let (constant, cosine) = (moved("constant"), moved("cosine"));
    assert!(
        cosine > 0.0 && cosine < 0.3 * constant,
        "{cosine}, {constant}"
    );
}

#[test]
fn a_generator_starts_from_the_average_of_another_run_and_of_its_bundle() {
    let lab = Lab::new();
    lab.train(GENERATOR, "first", &["--steps", "3"]);
    lab.run(&["export", "--gen", "first", "--out", "bundle.safetensors"]);
    let read = |name: &str| tensors(&lab, name);
    let from = read("first/checkpoints/step-00000003/ema.safetensors");
    for (run, init) in [("second", "first"), ("third", "bundle.safetensors")] {
        let options = ["--steps", "1", "--init", init];
        let output = lab.output(&lab.start(GENERATOR, run, &options));
        let told = stderr(&output);
        assert!(output.status.success(), "{told}");
        assert!(!told.contains("from scratch:"), "{told}");
        for file in ["model", "ema"] {
            let to = read(&format!(
                "{run}/checkpoints/step-00000000/{file}.safetensors"
            ));
            assert_eq!(from.len(), to.len());
            for (name, tensor) in &from {
                assert_eq!(values(tensor), values(&to[name]), "{run}: {name} of {file}");
            }
        }
    }
    // Other classes: their embeddings start from scratch.
    let other = [
        "--set",
        "generator.classes=5",
        "--steps",
        "1",
        "--init",
        "first",
    ];
    let output = lab.output(&lab.start(GENERATOR, "fourth", &other));
    let told = stderr(&output);
    assert!(
        told.contains("from scratch: y_embedder.weight ([6, 32], the file has [3, 32])"),
        "{told}"
    );
    assert_eq!(told.matches("from scratch:").count(), 1, "{told}");
    let start = lab.start(GENERATOR, "fifth", &["--init", "vae"]);
    let told = stderr(&lab.output(&start));
    assert!(told.contains("the model has a tokenizer only"), "{told}");
    assert!(!lab.path("fifth").exists());
}

#[test]
fn skipped_images_are_named_and_counted_at_the_end() {
    let lab = Lab::new();
    for name in ["high/3.png", "wide/5.png"] {
        fs::write(lab.path("data").join(name), "not an image").expect("damaged");
    }
    let output = lab.output(&lab.start(VAE, "run", &["--steps", "5"]));
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(
        stderr(&output).contains(".png: not an image"),
        "{}",
        stderr(&output)
    );
    let options = ["--steps", "5", "--skip-bad-images", "-v"];
    let output = lab.output(&lab.start(VAE, "whole", &options));
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert!(told.contains("data/wide/5.png"), "{told}");
    // Shown with -v only.
    assert!(
        told.contains("saved whole/checkpoints/step-00000005") && told.contains("\"psnr\":"),
        "{told}"
    );
    assert!(
        told.contains("2 of 18 images could not be read and were left out"),
        "{told}"
    );
}
