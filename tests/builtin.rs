//! The built-in model as a shell sees it.
//!
//! Without the model these tests are listed as ignored, and CI runs them with `--include-ignored`,
//! where they then fail.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rdpm::data::Classes;
use rdpm::store::builtin;
use rdpm::store::bundle::Bundle;
use serde_json::Value;

/// A folder without runs.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn rdpm(&self, line: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_rdpm"))
            .args(line.split_whitespace())
            .args(["--device", "cpu"])
            .current_dir(self.0.path())
            .env_remove("RDPM_MODEL")
            .env_remove("RUST_LOG")
            .output()
            .expect("the binary starts")
    }

    /// Its result and its log.
    fn run(&self, line: &str) -> (String, String) {
        let output = self.rdpm(line);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        let (out, log) = (text(output.stdout), text(output.stderr));
        assert!(output.status.success(), "{line}: {log}");
        (out, log)
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).expect("a file")
    }
}

fn classes() -> Classes {
    let bundle = Bundle::built_in().expect("a built-in model");
    serde_json::from_value(bundle.classes).expect("classes")
}

#[test]
#[cfg_attr(not(builtin_model), ignore = "there is no model in models/")]
fn the_program_has_the_model_once() {
    let model = builtin::bytes().expect("a built-in model");
    let middle = &model[model.len() / 2..][..64];
    let program = std::fs::read(env!("CARGO_BIN_EXE_rdpm")).expect("the program");
    let found = program.windows(middle.len()).filter(|part| *part == middle);
    assert_eq!(found.count(), 1);
}

#[test]
#[cfg_attr(not(builtin_model), ignore = "there is no model in models/")]
fn samples_are_the_same_bytes_at_any_batch_size_and_number_of_threads() {
    let place = Place::new();
    let known = classes().len();
    let list = format!("index:0,index:{},index:{}", known / 2, known - 1);
    let line = format!("sample --class {list} --num 5 --seed 3");
    let (_, log) = place.run(&format!("{line} --out a.npz --batch-size 5 --threads 2"));
    assert!(log.contains("model: the built-in one"), "{log}");
    place.run(&format!("{line} --out b.npz --batch-size 2 --threads 1"));
    assert!(place.bytes("a.npz") == place.bytes("b.npz"), "they differ");
    place.run(&format!(
        "sample --class {list} --num 5 --seed 4 --out c.npz --model builtin"
    ));
    assert!(
        place.bytes("a.npz") != place.bytes("c.npz"),
        "the seed is not used"
    );
}

#[test]
#[cfg_attr(not(builtin_model), ignore = "there is no model in models/")]
fn a_class_has_its_number_its_name_and_its_wnid() {
    let (place, classes) = (Place::new(), classes());
    let retriever = classes.index_of("n02099601");
    // Another model may know other classes; then its first serves.
    let index = retriever.unwrap_or(0);
    let class = classes.get(index).expect("a class");
    let name = class
        .words
        .split(',')
        .next()
        .expect("a word")
        .replace(' ', "_");
    let mut specs = vec![class.wnid.clone(), name, format!("index:{index}")];
    if retriever.is_some() {
        specs.extend(["207".to_string(), "golden_retriever".to_string()]);
    }
    for (i, spec) in specs.iter().enumerate() {
        place.run(&format!("sample --class {spec} --num 1 --out {i}.npz"));
        assert!(
            place.bytes("0.npz") == place.bytes(&format!("{i}.npz")),
            "{spec}"
        );
    }
    let output = place.rdpm("sample --class golden_retriver --num 1");
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{log}");
    assert!(log.contains("the nearest are"), "{log}");
}

#[test]
#[cfg_attr(not(builtin_model), ignore = "there is no model in models/")]
fn every_command_that_takes_a_model_takes_the_built_in_one() {
    let place = Place::new();
    place.run("sample --class index:0 --num 2 --out images");
    let (out, log) = place.run("reconstruct images --json");
    let report: Value = serde_json::from_str(&out).expect("JSON");
    assert!(report["psnr"].as_f64() > Some(15.0), "{out}");
    assert!(log.contains("model: the built-in one"), "{log}");
    place.run("encode images --out codes.safetensors");
    place.run("decode codes.safetensors --out decoded");
    place.run("eval-vae images --metrics psnr");
    place.run("export --dequantize builtin --out plain.safetensors");
    place.run("sample --class index:0 --num 2 --out again.npz --model plain.safetensors");
    place.run("sample --class index:0 --num 2 --out first.npz");
    assert!(
        place.bytes("again.npz") == place.bytes("first.npz"),
        "they differ"
    );
    let (out, _) = place.run("inspect --json");
    let facts: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(facts["kind"], "built-in bundle");
    assert_eq!(facts["format"], "rdpm-bundle/2");
    assert_eq!(place.run("inspect builtin --json").0, out);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(builtin::FILE);
    let size = std::fs::metadata(&file).expect("the file").len();
    assert_eq!(facts["bytes"].as_u64(), Some(size));
    assert!(size <= 28 << 20, "{size} bytes are more than 28 MiB");
}

/// An evaluation that was stopped leaves a folder under runs/, and so does a tokenizer's training.
#[test]
#[cfg_attr(not(builtin_model), ignore = "there is no model in models/")]
fn where_nothing_is_finished_the_built_in_model_is_taken_and_that_is_said() {
    let place = Place::new();
    std::fs::create_dir_all(place.path("runs/eval-fid-1")).expect("a folder");
    std::fs::create_dir_all(place.path("runs/vae")).expect("a folder");
    std::fs::write(place.path("runs/vae/config.toml"), "").expect("a file");
    let (_, log) = place.run("sample --class index:0 --num 1 --out a.npz");
    for line in [
        "model: the built-in one",
        "passed over: runs/eval-fid-1 is no run",
        "passed over: runs/vae has no checkpoint that can be read; --model runs/vae names it",
    ] {
        assert!(log.contains(line), "{log}");
    }
}

#[test]
#[cfg(not(builtin_model))]
fn a_program_without_a_model_says_what_to_do() {
    let place = Place::new();
    for line in [
        "sample --class 207",
        "sample --class 207 --model builtin",
        "inspect",
    ] {
        let output = place.rdpm(line);
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{line}: {log}");
        let how = match cfg!(feature = "builtin-model") {
            true => builtin::FILE,
            false => "builtin-model",
        };
        assert!(log.contains("without a model"), "{line}: {log}");
        assert!(log.contains("hint: ") && log.contains(how), "{line}: {log}");
    }
}

/// The share of samples that show their class, by Inception's features and the probe beside the
/// model; $RDPM_WEIGHTS is the folder of the weights.
#[test]
#[ignore = "Inception's weights"]
fn samples_show_their_class() {
    let place = Place::new();
    let weights = std::env::var("RDPM_WEIGHTS").expect("RDPM_WEIGHTS names a folder");
    let probe =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("models/probe-tiny-imagenet-64.safetensors");
    let report = place.path("report.json");
    place.run(&format!(
        "eval-fid --samples builtin --num 200 --probe {} --json {} --weights {weights}/fid_inception.safetensors",
        probe.display(),
        report.display()
    ));
    let report = std::fs::read_to_string(report).expect("a report");
    let report: Value = serde_json::from_str(&report).expect("JSON");
    let top1 = report["metrics"]["probe_top1"]["value"].as_f64();
    assert!(top1 >= Some(0.6), "{top1:?}");
}

/// As docs/evaluation.md fits one, to samples of two classes.
#[test]
#[ignore = "Inception's weights"]
fn samples_show_their_class_to_a_probe_that_is_fitted_to_them() {
    let place = Place::new();
    let weights = std::env::var("RDPM_WEIGHTS").expect("RDPM_WEIGHTS names a folder");
    std::fs::create_dir(place.path("set")).expect("a folder");
    for (class, index) in [("first", 0), ("second", 100)] {
        let line = format!("sample --class index:{index} --num 8 --out set/{class}");
        place.run(&line);
    }
    let inception = format!("--weights {weights}/fid_inception.safetensors");
    place.run(&format!(
        "fit-probe set --val set --epochs 200 --out probe.safetensors {inception}"
    ));
    place.run(&format!(
        "eval-fid --samples set --probe probe.safetensors --json report.json {inception}"
    ));
    let report: Value = serde_json::from_slice(&place.bytes("report.json")).expect("JSON");
    let top1 = report["metrics"]["probe_top1"]["value"].as_f64();
    assert!(top1 >= Some(0.9), "{top1:?}");
}
