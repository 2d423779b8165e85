//! `rdpm eval-fid` as a shell sees it, with the first stage of Inception (64 features) and random
//! weights.

#[path = "../ranks/mod.rs"]
mod processes;
mod ranks;
mod tokenizer;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Output};

use candle_core::{Device, Tensor};
use image::{Rgb, RgbImage};
use rdpm::config::Config;
use rdpm::data::Classes;
use rdpm::metrics::probe::{Parameters, Probe};
use rdpm::metrics::stats_file::MadeBy;
use rdpm::model::{Generator, Tokenizer};
use rdpm::rng::{Purpose, Stream};
use rdpm::store::Scope;
use rdpm::store::bundle::Bundle;
use rdpm::store::int8::Int8;
use rdpm::store::npz::{Element, Npz, NpzWriter};
use rdpm::store::safetensors;
use serde_json::{Value, json};

struct Place(tempfile::TempDir);

impl Place {
    /// Folders `a` and `b` of 24 images, and the weights.
    fn new() -> Self {
        let place = Self(tempfile::tempdir().expect("a folder"));
        for (seed, name) in [(1, "a"), (2, "b")] {
            let mut draws = Stream::new(seed, Purpose::Drawing, 0, 0).draws();
            std::fs::create_dir(place.path(name)).expect("a folder");
            for i in 0..24 {
                let (x0, y0) = (draws.below(12), draws.below(12));
                let colour = Rgb([0; 3].map(|_: u8| draws.below(256) as u8));
                let image = RgbImage::from_fn(16, 16, |x, y| {
                    if x > x0 && y > y0 {
                        colour
                    } else {
                        Rgb([90; 3])
                    }
                });
                image
                    .save(place.path(name).join(format!("{i:03}.png")))
                    .expect("written");
            }
        }
        let mut tensors = BTreeMap::new();
        for (name, o, i) in [
            ("Conv2d_1a_3x3", 32, 3),
            ("Conv2d_2a_3x3", 32, 32),
            ("Conv2d_2b_3x3", 64, 32),
        ] {
            let mut values = vec![0f32; o * i * 9];
            Stream::new(5, Purpose::Init, o as u64 + i as u64, 0).fill_normal(&mut values);
            values
                .iter_mut()
                .for_each(|x| *x *= (2.0 / (9 * i) as f32).sqrt());
            let conv = Tensor::from_vec(values, (o, i, 3, 3), &Device::Cpu).expect("a tensor");
            tensors.insert(format!("{name}.conv.weight"), conv);
            for (part, value) in [
                ("weight", 1f32),
                ("bias", 0.1),
                ("running_mean", 0.0),
                ("running_var", 1.0),
            ] {
                let vector = Tensor::full(value, o, &Device::Cpu).expect("a tensor");
                tensors.insert(format!("{name}.bn.{part}"), vector);
            }
        }
        safetensors::write(&place.path("w.safetensors"), &tensors, &BTreeMap::new())
            .expect("written");
        place
    }

    /// An untrained model of two classes and 16 pixels: `model.safetensors`.
    fn with_model(self) -> Self {
        let settings = [
            "data.image_size=16",
            "tokenizer.ch=8",
            "tokenizer.ch_mult=[1,2]",
            "tokenizer.num_res_blocks=1",
            "tokenizer.embed_dim=4",
            "tokenizer.norm_groups=4",
            "quantizer.codebook_size=24",
            "quantizer.steps=3",
            "generator.depth=1",
            "generator.width=32",
            "generator.heads=2",
        ];
        let settings = settings.map(String::from);
        let config = Config::load(Some("smoke"), &settings).expect("a configuration");
        let scope = || Scope::init(1, &Device::Cpu);
        let (of_tokenizer, of_generator) = (scope(), scope());
        Tokenizer::new(&config, &of_tokenizer).expect("a tokenizer");
        Generator::new(&config, 2, &of_generator).expect("a generator");
        let mut bundle = Bundle::new(config, of_tokenizer.finish().tensors());
        bundle.generator = Some(of_generator.finish().tensors());
        let class = |i| json!({"index": i, "wnid": format!("n{i}"), "words": format!("class {i}")});
        bundle.classes = json!([class(0), class(1)]);
        let path = self.path("model.safetensors");
        bundle.write(&path, false).expect("written");
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn eval(&self, line: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_rdpm"))
            .args([
                "eval-fid",
                "-q",
                "--dims",
                "64",
                "--weights",
                "w.safetensors",
            ])
            .args(line.split_whitespace())
            .current_dir(self.0.path())
            .env("XDG_CONFIG_HOME", self.path("config"))
            .env_remove("RUST_LOG")
            .output()
            .expect("the binary starts")
    }

    fn report(&self, line: &str) -> Value {
        let output = self.eval(&format!("--metrics fid --json report.json {line}"));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {stderr}");
        let text = std::fs::read_to_string(self.path("report.json")).expect("a report");
        serde_json::from_str(&text).expect("JSON")
    }

    fn fails(&self, line: &str, code: i32, parts: &[&str]) {
        let output = self.eval(line);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line}: {stderr}");
        for part in parts {
            assert!(stderr.contains(part), "{line}: no `{part}` in {stderr}");
        }
    }

    fn array(&self, name: &str, arrays: &[(&str, &[usize], &[f64])]) {
        let file = std::fs::File::create(self.path(name)).expect("a file");
        let mut npz = NpzWriter::new(file);
        for (array, shape, values) in arrays {
            npz.array(array, Element::F64, shape).expect("written");
            for x in *values {
                npz.write(&x.to_le_bytes()).expect("written");
            }
        }
        npz.finish().expect("written");
    }
}

fn fid(report: &Value) -> f64 {
    report["metrics"]["fid"]["value"]
        .as_f64()
        .expect("a figure")
}

#[test]
fn a_report_names_what_its_figures_are_of() {
    let place = Place::new();
    let report = place.report("--samples a --reference b --interval");
    let figure = &report["metrics"]["fid"];
    assert!(fid(&report) > 0.0 && figure["interval"][0].as_f64() < Some(fid(&report)));
    assert_eq!(
        (figure["samples"].as_u64(), figure["dims"].as_u64()),
        (Some(24), Some(64))
    );
    assert_eq!(figure["preprocess"], "adm");
    assert_eq!(figure["weights"].as_str().map(str::len), Some(64));
    assert_eq!(report["samples"]["size"], serde_json::json!([16, 16]));

    // A set is named by the table.
    let hash = report["reference"]["hash"]
        .as_str()
        .expect("a digest")
        .to_string();
    let folder = place.path("config/rdpm");
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(
        folder.join("references.toml"),
        format!("\"{hash}\" = \"my set\"\n"),
    )
    .expect("written");
    let named = place.report("--samples a --reference b --interval --batch-size 7");
    assert_eq!(named["reference"]["name"], "my set");
    assert_eq!(fid(&named).to_bits(), fid(&report).to_bits());
}

#[test]
fn statistics_stand_for_their_images() {
    let place = Place::new();
    let direct = fid(&place.report("--samples a --reference b"));
    place.report("--samples b --save-stats b.npz");
    let by_statistics = place.report("--samples a --reference b.npz");
    assert!((fid(&by_statistics) / direct - 1.0).abs() < 1e-9);
    assert_eq!(by_statistics["metrics"]["fid"]["reference"], 24);
    let same = fid(&place.report("--samples b --reference b.npz"));
    assert!(same.abs() < 1e-4 * direct, "{same}");
    place.fails(
        "--samples a --reference b.npz --metrics fid --preprocess clean",
        1,
        &["made with --preprocess adm", "hint: "],
    );
    place.fails(
        "--samples b.npz --reference a --metrics fid-inf",
        1,
        &["no images", "--metrics"],
    );
    place.fails(
        "--samples b.npz --reference a --metrics fid --interval",
        2,
        &["--interval: b.npz holds statistics", "hint: "],
    );
    // The groups are those of the samples.
    let interval = place.report("--samples a --reference b.npz --interval");
    assert!(interval["metrics"]["fid"]["interval"][1].as_f64() > Some(fid(&interval)));
}

#[test]
fn statistics_that_are_saved_again_stay_what_they_were() {
    let place = Place::new();
    let made_by = |name: &str| {
        let mut npz = Npz::open(&place.path(name)).expect("an archive");
        let mut text = Vec::new();
        let known = npz.has("rdpm");
        if known {
            let take = |piece: &[u8]| {
                text.extend_from_slice(piece);
                Ok(())
            };
            npz.bytes("rdpm", usize::MAX, 4096, take).expect("bytes");
        }
        known.then(|| String::from_utf8(text).expect("JSON"))
    };
    // From another tool: it is unknown what made them, so a comparison needs to be told.
    let identity: Vec<f64> = (0..64 * 64).map(|i| f64::from(i % 65 == 0)).collect();
    let mean = vec![0.5; 64];
    place.array(
        "foreign.npz",
        &[("mu", &[64], &mean), ("sigma", &[64, 64], &identity)],
    );
    place.fails(
        "--samples a --reference foreign.npz --metrics fid",
        2,
        &["does not say by which resize", "--preprocess"],
    );
    place.report("--samples a --reference foreign.npz --preprocess pytorch-fid");
    place.report("--samples foreign.npz --save-stats again.npz");
    assert_eq!(made_by("again.npz"), None);
    // From this program: the file says what made it.
    place.report("--samples a --save-stats a.npz");
    let text = made_by("a.npz")
        .expect("its own")
        .replace("\"images\":24", "\"images\":23");
    let mut npz = NpzWriter::new(std::fs::File::create(place.path("a23.npz")).expect("a file"));
    for (array, shape, values) in [("mu", &[64][..], &mean), ("sigma", &[64, 64], &identity)] {
        npz.array(array, Element::F64, shape).expect("written");
        for x in values {
            npz.write(&x.to_le_bytes()).expect("written");
        }
    }
    npz.array("rdpm", Element::U8, &[text.len()])
        .expect("written");
    npz.write(text.as_bytes()).expect("written");
    npz.finish().expect("written");
    place.report("--samples a23.npz --save-stats again.npz");
    assert_eq!(made_by("again.npz"), Some(text));
}

#[test]
fn what_is_no_set_of_images_is_refused_by_name() {
    let place = Place::new();
    std::fs::create_dir(place.path("empty")).expect("a folder");
    std::fs::create_dir(place.path("one")).expect("a folder");
    std::fs::copy(place.path("a/000.png"), place.path("one/0.png")).expect("copied");
    place.fails(
        "--samples empty --reference b --metrics fid",
        1,
        &["no images in this folder"],
    );
    place.fails(
        "--samples one --reference b --metrics fid",
        1,
        &["fewer than two"],
    );
    // Reported before an image of the other side is read.
    std::fs::write(place.path("a/010.png"), "damaged").expect("written");
    place.fails(
        "--samples a --reference one --metrics fid",
        1,
        &["one: 1 image", "fewer than two", "hint: "],
    );
    std::fs::copy(place.path("a/000.png"), place.path("a/010.png")).expect("copied");
    place.fails(
        "--samples nowhere --reference b --metrics fid",
        2,
        &["there is no nowhere"],
    );

    place.array("floats.npz", &[("arr_0", &[1, 2, 2, 3], &[0.0; 12])]);
    place.fails(
        "--samples floats.npz --reference b --metrics fid",
        1,
        &["expected images u8"],
    );
    let identity: Vec<f64> = (0..64 * 64).map(|i| f64::from(i % 65 == 0)).collect();
    let (mut nan, mean) = (identity.clone(), vec![0.0; 64]);
    nan[70] = f64::NAN;
    place.array(
        "nan.npz",
        &[("mu", &[64], &mean), ("sigma", &[64, 64], &nan)],
    );
    place.fails(
        "--samples a --reference nan.npz --metrics fid",
        1,
        &["not finite"],
    );
    let narrow: Vec<f64> = (0..32 * 32).map(|i| f64::from(i % 33 == 0)).collect();
    place.array(
        "narrow.npz",
        &[("mu", &[32], &mean[..32]), ("sigma", &[32, 32], &narrow)],
    );
    let parts = ["statistics of 32 dimensions", "--dims"];
    place.fails(
        "--samples a --reference narrow.npz --metrics fid --preprocess adm",
        2,
        &parts,
    );
    let whole = std::fs::read(place.path("nan.npz")).expect("read");
    std::fs::write(place.path("cut.npz"), &whole[..whole.len() / 2]).expect("written");
    place.fails(
        "--samples a --reference cut.npz --metrics fid",
        1,
        &["not written completely"],
    );
}

#[test]
fn what_will_fail_fails_before_anything_is_computed() {
    let place = Place::new();
    // The command would meet this unreadable image first if it started to compute.
    std::fs::write(place.path("b/010.png"), "damaged").expect("written");
    let sides = "--samples a --reference b --metrics fid";
    for output in ["--json", "--save-stats", "--save-features"] {
        let line = format!("{sides} {output} nowhere/x");
        place.fails(
            &line,
            1,
            &["cannot write nowhere/x", "make its folder first"],
        );
    }
    place.fails(
        &format!("{sides} --json a"),
        1,
        &["cannot write a: not a file"],
    );
    place.fails(&format!("{sides} --kid-subsets 0"), 2, &["--kid-subsets"]);
    let large = RgbImage::new(9, 9);
    std::fs::create_dir(place.path("c")).expect("a folder");
    large.save(place.path("c/0.png")).expect("written");
    place.fails(
        "--samples c --reference b --metrics fid",
        1,
        &["9×9", "16×16", "--crop"],
    );
    place.fails(
        "--samples a --save-stats x.npz --metrics is",
        2,
        &["without --reference"],
    );
    place.fails(sides, 1, &["010"]);
    let folder = place.path("config/rdpm");
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join("references.toml"), "a = [").expect("written");
    place.fails(sides, 1, &["references.toml"]);
}

#[test]
fn evaluations_of_the_same_samples_share_their_features() {
    let place = Place::new().with_model();
    let samples = "--samples model.safetensors --reference b --num 24 --batch-size 5";
    let whole = place.report(&format!("{samples} --work w1"));
    assert_eq!(whole["samples"]["images"], 24);
    assert_eq!(whole["samples"]["sampling"]["count"], 24);
    assert!(whole["samples"]["sampling"]["sampler"].is_string());
    let known = || {
        let files = std::fs::read_dir(place.path("w1")).expect("a folder");
        let sizes = files.filter_map(|file| {
            let file = file.expect("a file");
            let is_tap = file.path().extension().is_some_and(|e| e == "f32");
            is_tap.then(|| file.metadata().expect("its size").len() / (4 * 64))
        });
        sizes.collect::<Vec<u64>>()
    };
    assert_eq!(known(), [24]);
    // Another reference, fewer samples: nothing is drawn, the first samples are reused.
    place.report("--samples model.safetensors --reference a --num 10 --work w1");
    assert_eq!(known(), [24]);
    // Another resize has its own features.
    place.report(&format!("{samples} --work w1 --preprocess clean"));
    assert_eq!(known(), [24, 24]);
    let fresh = "--samples model.safetensors --reference b --num 10 --work w2";
    let ten = place.report(fresh);
    let more = place.report(&format!("{samples} --work w2"));
    assert_eq!(fid(&more).to_bits(), fid(&whole).to_bits());
    let again = place.report(fresh);
    assert_eq!(fid(&again).to_bits(), fid(&ten).to_bits());
    place.fails(
        &format!("{samples} --work w1 --metrics fid --seed 7"),
        1,
        &["w1: features of other samples", "--work"],
    );
}

#[test]
fn what_is_no_setting_of_a_model_is_refused_before_anything_is_computed() {
    let place = Place::new().with_model();
    std::fs::write(place.path("b/010.png"), "damaged").expect("written");
    let line =
        |more: &str| format!("--samples model.safetensors --reference b --metrics fid {more}");
    for (more, part) in [
        ("--class zebra", "zebra"),
        ("--no-gumbel --top-k 3", "--top-k has no meaning"),
        ("--no-gumbel --sweep top-k=1,2", "no meaning without Gumbel"),
        ("--sweep cfg=0,1 --save-stats x.npz", "one setting"),
        ("--sweep cfg=1,1", "given twice"),
    ] {
        place.fails(&line(more), 2, &[part]);
    }
    assert!(!place.path("runs").exists());
    place.fails(&line("--crop 8"), 1, &["16×16", "8×8"]);
    place.fails(&line(""), 1, &["010"]);
}

#[test]
fn a_failing_write_loses_no_figure() {
    let place = Place::new();
    // The temporary file is a dangling link, which is not left by a killed process and is not
    // swept.
    let (there, at) = (place.path("missing/file"), place.path(".r.json.partial"));
    std::os::unix::fs::symlink(there, at).expect("a link");
    let output = place.eval("--samples a --reference b --metrics fid --json r.json");
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("cannot write r.json"), "{stderr}");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("fid 64"), "{stdout}");
}

#[test]
fn options_that_cannot_be_are_usage_errors() {
    let place = Place::new();
    place.fails("--samples a", 2, &["--reference"]);
    place.fails(
        "--samples a --reference b --sweep cfg=1",
        2,
        &["no model to sample from"],
    );
    for flag in ["--num 5", "--cfg 1.5", "--no-gumbel", "--top-p 0.5"] {
        place.fails(
            &format!("--samples a --reference b --metrics fid {flag}"),
            2,
            &[
                "no model to sample from",
                flag.split(' ').next().unwrap_or(flag),
            ],
        );
    }
    place.fails(
        "--samples a --reference b --sweep cfg=x",
        2,
        &["out of range"],
    );
    // The weights end after the first stage.
    place.fails(
        "--samples a --reference b --metrics pr",
        1,
        &["Conv2d_3b_1x1", "hint: "],
    );
    std::fs::remove_file(place.path("w.safetensors")).expect("removed");
    let parts = ["w.safetensors: no such weights file", "--weights"];
    place.fails("--samples a --reference b --metrics fid", 2, &parts);
}

#[test]
fn a_probe_is_refused_where_it_cannot_judge_before_anything_is_computed() {
    let place = Place::new().with_model();
    let parameters = Parameters {
        weight: Int8 {
            shape: vec![1, 2048],
            values: vec![1; 2048],
            scales: vec![1.0],
        },
        bias: vec![0.0],
        mean: vec![0.0; 2048],
        std: vec![1.0; 2048],
    };
    let made_by = MadeBy {
        network: "inception-2015-12-05".into(),
        weights: "other".into(),
        preprocess: "adm".into(),
        images: 1,
        size: None,
        version: "0".into(),
    };
    let probe = Probe::new(parameters, Classes::named(["n0"]), made_by).expect("a probe");
    probe
        .write(&place.path("probe.safetensors"))
        .expect("written");
    let with = |rest: &str| format!("--probe probe.safetensors {rest}");
    // Folders without classes, and a model that knows one more.
    place.fails(
        &with("--samples a"),
        2,
        &["a do not say what they should show", "hint: "],
    );
    place.fails(
        &with("--samples model.safetensors --num 4"),
        2,
        &["class index:1 (n1: class 1) is not among its 1 classes"],
    );
    place.fails(
        &with("--samples model.safetensors --class n0 --num 4 --metrics fid"),
        2,
        &["--metrics compare samples with a reference"],
    );
    // Only the first stage of the network is there.
    place.fails(
        &with("--samples model.safetensors --class n0 --num 4"),
        1,
        &["not FID's Inception-v3"],
    );
    place.fails(
        "--samples model.safetensors --probe model.safetensors",
        1,
        &["is a bundle (rdpm-bundle/1); expected a probe"],
    );
    place.fails("--samples a", 2, &["--reference"]);
}
