//! Images to codes and back through the command line, with a small untrained model.

mod formats;
mod python;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use candle_core::{Device, Tensor};
use rdpm::config::Config;
use rdpm::data::shapes::Shapes;
use rdpm::data::{Classes, Source};
use rdpm::error::Result;
use rdpm::model::{Generator, Tokenizer};
use rdpm::rng::{Purpose, normal};
use rdpm::store::Scope;
use rdpm::store::bundle::Bundle;
use rdpm::store::codes::{Codes, Format};

fn rdpm(folder: &Path, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rdpm"))
        .args(line.split_whitespace())
        .current_dir(folder)
        .output()
        .expect("the binary runs")
}

fn succeeds(folder: &Path, line: &str) -> String {
    let output = rdpm(folder, line);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "rdpm {line}\n{errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Returns stderr and the exit code.
fn fails(folder: &Path, line: &str) -> (String, Option<i32>) {
    let output = rdpm(folder, line);
    assert!(!output.status.success(), "rdpm {line} succeeded");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    (errors, output.status.code())
}

/// A bundle with the demo's architecture, but smaller, with random parameters, and eleven drawings
/// as files.
fn prepare(folder: &Path, name: &str, seed: u64) -> Result<()> {
    let mut config = Config::load(Some("demo"), &[])?;
    config.tokenizer.ch = 32;
    config.quantizer.codebook_size = 64;
    config.quantizer.steps = 4;
    (config.generator.depth, config.generator.width) = (2, Some(64));
    config.generator.heads = Some(2);
    let random =
        |make: &dyn Fn(&Scope) -> candle_core::Result<()>| -> Result<BTreeMap<String, Tensor>> {
            let scope = Scope::init(seed, &Device::Cpu);
            make(&scope)?;
            let params = scope.finish();
            for (i, (_, var)) in params.iter().enumerate() {
                let noise = normal(
                    seed,
                    Purpose::Init,
                    &[i as u64],
                    0,
                    var.dims(),
                    var.device(),
                )?;
                var.set(&(var.as_tensor() + (noise.squeeze(0)? * 0.1)?)?)?;
            }
            Ok(params.tensors())
        };
    let tokenizer = random(&|scope| Tokenizer::new(&config, scope).map(drop))?;
    let generator = random(&|scope| Generator::new(&config, 10, scope).map(drop))?;
    let shapes = Shapes::new(seed, 11);
    let bundle = Bundle {
        classes: serde_json::to_value(shapes.classes())?,
        generator: Some(generator),
        ..Bundle::new(config, tokenizer)
    };
    bundle.write(&folder.join(name), false)?;
    for i in 0..shapes.len() {
        let example = shapes.read(i)?;
        let path = folder.join("images").join(format!("{}.png", example.key));
        std::fs::create_dir_all(path.parent().expect("it has one"))?;
        example.image.save(path)?;
    }
    Ok(())
}

#[test]
fn decoded_codes_are_the_reconstruction_bit_for_bit() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = folder.path();
    prepare(at, "model.safetensors", 1)?;
    let model = "--model model.safetensors";
    succeeds(
        at,
        &format!("reconstruct images {model} --out a.npz --seed 5 --batch-size 11"),
    );
    succeeds(
        at,
        &format!(
            "encode images {model} --out c.safetensors --seed 5 --batch-size 2 --save-noise --latents"
        ),
    );
    succeeds(
        at,
        &format!("decode c.safetensors {model} --out b.npz --batch-size 3 --threads 1"),
    );
    assert!(std::fs::read(at.join("a.npz"))? == std::fs::read(at.join("b.npz"))?);

    let codes = Codes::read(&at.join("c.safetensors"))?;
    assert_eq!(codes.codes.dims(), [4, 11, 8, 8]);
    assert_eq!(
        codes.latents.map(|v| v.dims().to_vec()),
        Some(vec![11, 8, 8, 8])
    );
    // Folders are sorted by name; labels are the model's indices: checkers 8, cross 5, disc 0
    // twice.
    assert_eq!(codes.labels[..4], [8, 5, 0, 0]);

    // Its own noise, read from the file, gives the same codes under another seed.
    succeeds(
        at,
        &format!("encode images {model} --out d.safetensors --seed 6 --noise c.safetensors"),
    );
    succeeds(
        at,
        &format!("encode images {model} --out e.safetensors --seed 6"),
    );
    let read = |name: &str| -> Result<Vec<u32>> {
        Ok(Codes::read(&at.join(name))?
            .codes
            .flatten_all()?
            .to_vec1()?)
    };
    assert_eq!(read("d.safetensors")?, read("c.safetensors")?);
    assert_ne!(read("e.safetensors")?, read("c.safetensors")?);
    Ok(())
}

#[test]
fn noise_saved_beside_a_skipped_image_belongs_to_the_others() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = folder.path();
    prepare(at, "model.safetensors", 1)?;
    // In the middle of the folder's order and of a batch.
    std::fs::write(at.join("images/disc/0.png"), "no image")?;
    let encode = "encode images --model model.safetensors --batch-size 4";
    let skip = format!("{encode} --skip-bad-images");
    succeeds(at, &format!("{skip} --out c.safetensors --save-noise"));
    succeeds(
        at,
        &format!("{skip} --out d.safetensors --seed 6 --noise c.safetensors"),
    );
    let codes = |name: &str| Codes::read(&at.join(name));
    let [c, d] = [codes("c.safetensors")?, codes("d.safetensors")?];
    assert_eq!(c.codes.dims()[1], 11);
    assert_eq!(
        c.codes.flatten_all()?.to_vec1::<u32>()?,
        d.codes.flatten_all()?.to_vec1::<u32>()?
    );
    // Once the file is gone, the noise is for all images.
    std::fs::remove_file(at.join("images/disc/0.png"))?;
    let whole = "--out e.safetensors --seed 6 --noise c.safetensors";
    succeeds(at, &format!("{encode} {whole}"));
    assert!(std::fs::read(at.join("d.safetensors"))? == std::fs::read(at.join("e.safetensors"))?);
    std::fs::remove_dir_all(at.join("images/checkers"))?;
    let (errors, _) = fails(at, &format!("{skip} {whole}"));
    assert!(
        errors.contains("the noise is for 11 images, but there are"),
        "{errors}"
    );
    Ok(())
}

#[test]
fn whoever_writes_labels_says_what_is_hard_to_believe_of_them() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = folder.path();
    prepare(at, "model.safetensors", 1)?;
    // Labels from 1 on, as MATLAB counts.
    std::fs::create_dir(at.join("counted"))?;
    for (i, file) in ["a", "b"].iter().enumerate() {
        let image = image::RgbImage::from_pixel(32, 32, image::Rgb([90; 3]));
        image.save(at.join(format!("counted/{file}.png")))?;
        std::fs::write(at.join(format!("counted/{file}.cls")), format!("{}", i + 1))?;
    }
    for (command, expected) in [
        ("encode counted --out c.safetensors", true),
        ("encode images --out c.safetensors", false),
        ("reconstruct counted --out a.npz", true),
        // A sheet shows no labels.
        ("reconstruct counted --out a.png", false),
    ] {
        let output = rdpm(at, &format!("{command} --model model.safetensors"));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}\n{errors}");
        let said = errors.contains("labels begin at 1");
        assert_eq!(said, expected, "{command}\n{errors}");
    }
    Ok(())
}

#[test]
fn a_sheet_shows_images_at_a_size_that_people_see() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = folder.path();
    prepare(at, "model.safetensors", 1)?;
    let sheet = |command: &str, scale: &str| -> Result<image::RgbImage> {
        let line = format!("{command} --model model.safetensors --out sheet.png{scale}");
        succeeds(at, &line);
        Ok(image::open(at.join("sheet.png"))?.into_rgb8())
    };
    succeeds(
        at,
        "encode images --model model.safetensors --out codes.safetensors",
    );
    for (command, columns, rows) in [
        ("sample --class star --num 4", 2, 2),
        ("sample --class star --num 2 --show-steps", 4, 2),
        ("reconstruct images", 8, 3),
        ("decode codes.safetensors", 4, 3),
    ] {
        let side = |n: u32, times: u32| n * (32 * times + 2) - 2;
        let own = sheet(command, " --scale 1")?;
        assert_eq!(
            own.dimensions(),
            (side(columns, 1), side(rows, 1)),
            "{command}"
        );
        for (scale, times) in [("", 4), (" --scale auto", 4), (" --scale 3", 3)] {
            let large = sheet(command, scale)?;
            assert_eq!(
                large.dimensions(),
                (side(columns, times), side(rows, times)),
                "{command}{scale}"
            );
            // The second image of the first row, pixel by pixel.
            for (x, y) in (0..32 * times * 32 * times).map(|i| (i % (32 * times), i / (32 * times)))
            {
                let (from, to) = (34 + x / times, 32 * times + 2 + x);
                assert_eq!(
                    own.get_pixel(from, y / times),
                    large.get_pixel(to, y),
                    "{command}{scale}"
                );
            }
        }
    }
    let (errors, code) = fails(
        at,
        "sample --class star --model model.safetensors --out a.npz --scale 2",
    );
    assert!(
        errors.contains("is not a sheet") && code == Some(2),
        "{errors}"
    );
    Ok(())
}

#[test]
fn reconstruct_reports_the_psnr_of_what_it_wrote() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = folder.path();
    prepare(at, "model.safetensors", 1)?;
    let line = succeeds(
        at,
        "reconstruct images --model model.safetensors --out pairs --json",
    );
    let report: serde_json::Value = serde_json::from_str(&line)?;
    let images = report["images"].as_array().expect("a list");
    assert_eq!(images.len(), 11);
    let mut sum = 0.0;
    for image in images {
        let number = image["image"].as_u64().expect("a number");
        let found = std::fs::read_dir(at.join("pairs"))?
            .filter_map(|e| Some(e.ok()?.path()))
            .find(|p| p.to_string_lossy().ends_with(&format!("-{number:06}.png")));
        let pair = image::open(found.expect("its pair"))?.into_rgb8();
        assert_eq!(pair.dimensions(), (32 + 2 + 32, 32));
        let mut squared = 0.0;
        for (x, y) in (0..32 * 32).map(|i| (i % 32, i / 32)) {
            for (a, b) in pair
                .get_pixel(x, y)
                .0
                .iter()
                .zip(pair.get_pixel(x + 34, y).0)
            {
                squared += f64::from(a.abs_diff(b)).powi(2) / (32.0 * 32.0 * 3.0);
            }
        }
        let psnr = 10.0 * (255.0f64.powi(2) / squared).log10();
        assert!((image["psnr"].as_f64().expect("a number") - psnr).abs() < 1e-9);
        sum += psnr;
    }
    assert!((report["psnr"].as_f64().expect("a number") - sum / 11.0).abs() < 1e-9);
    Ok(())
}

#[test]
fn codes_of_another_tokenizer_are_refused_unless_forced() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = folder.path();
    prepare(at, "model.safetensors", 1)?;
    prepare(at, "other.safetensors", 2)?;
    succeeds(at, "encode images --model model.safetensors");
    let (errors, code) = fails(at, "decode codes.safetensors --model other.safetensors");
    assert!(
        errors.contains("another tokenizer") && errors.contains("hint: "),
        "{errors}"
    );
    assert_eq!(code, Some(1));
    succeeds(
        at,
        "decode codes.safetensors --model other.safetensors --force",
    );
    Ok(())
}

#[test]
fn samples_are_the_same_files_whatever_the_batch_and_the_threads() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = folder.path();
    prepare(at, "model.safetensors", 1)?;
    let sample = "sample --model model.safetensors --class all --num 20 --seed 3";
    succeeds(
        at,
        &format!("{sample} --out a.npz --batch-size 20 --threads 2"),
    );
    for batch in [1, 2, 7] {
        succeeds(
            at,
            &format!("{sample} --out b.npz --batch-size {batch} --threads 1"),
        );
        assert!(
            std::fs::read(at.join("a.npz"))? == std::fs::read(at.join("b.npz"))?,
            "{batch}"
        );
    }
    // Number 13 is the second image of class 3, also in a folder.
    succeeds(at, &format!("{sample} --out folder"));
    let one = image::open(at.join("folder/index0003-000013.png"))?.into_rgb8();
    let npz = std::fs::read(at.join("a.npz"))?;
    assert!(
        npz.windows(3072)
            .any(|bytes| bytes == one.as_raw().as_slice())
    );
    // The last image of a strip is the sample itself.
    succeeds(at, &format!("{sample} --out strips --show-steps"));
    let strip = image::open(at.join("strips/index0003-000013.png"))?.into_rgb8();
    assert_eq!(strip.dimensions(), (4 * 34 - 2, 32));
    let last = image::imageops::crop_imm(&strip, 3 * 34, 0, 32, 32).to_image();
    assert!(last == one);
    Ok(())
}

#[test]
fn what_a_user_mistypes_is_a_usage_error_with_a_hint() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = folder.path();
    prepare(at, "model.safetensors", 1)?;
    for (line, words) in [
        ("", "--class is missing: the model has 10 classes"),
        ("--class strar", "star"),
        ("--class 10", "0 to 9"),
        (
            "--class star --no-gumbel --top-k 3",
            "--top-k has no meaning",
        ),
        ("--class star --out a.jpg", "no output of kind `.jpg`"),
        ("--class star --out a.npz --show-steps", "--show-steps"),
    ] {
        let (errors, code) = fails(at, &format!("sample --model model.safetensors {line}"));
        assert!(
            errors.contains(words) && errors.contains("hint: "),
            "{line}: {errors}"
        );
        assert_eq!(code, Some(2), "{line}: {errors}");
    }
    Ok(())
}

#[test]
fn imagenets_number_names_a_class_of_a_model_of_some_wnids() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = folder.path();
    prepare(at, "model.safetensors", 1)?;
    let mut bundle = Bundle::read(&at.join("model.safetensors"))?;
    let all = Classes::imagenet();
    let wnids = all.iter().map(|class| class.wnid.clone());
    let some: Vec<String> = wnids.skip(1).step_by(103).take(10).collect();
    assert_eq!(some[2], "n02099601", "golden retriever");
    bundle.classes = serde_json::to_value(Classes::named(some))?;
    bundle.write(&at.join("some.safetensors"), false)?;
    let sample = "sample --model some.safetensors --num 1";
    for (class, name) in [
        ("207", "a/index0002-000000.png"),
        ("n02099601", "b/index0002-000000.png"),
        ("index:2", "c/index0002-000000.png"),
        ("1", "d/index0000-000000.png"),
    ] {
        let out = name.split('/').next().unwrap_or_default();
        let output = rdpm(at, &format!("{sample} --class {class} --out {out}"));
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{told}");
        assert!(at.join(name).is_file(), "{class}: {told}");
        assert_eq!(
            told.contains("class 1 is taken as 1 (n01443537"),
            class == "1",
            "{told}"
        );
    }
    let (errors, code) = fails(at, &format!("{sample} --class 2"));
    assert!(
        errors.contains("ImageNet's class 2") && errors.contains("index:2 is 207"),
        "{errors}"
    );
    assert_eq!(code, Some(2));
    Ok(())
}

/// `model.safetensors` with the first element of the tensor `name` replaced, as `bad.safetensors`.
fn damage(folder: &Path, name: &str, value: f32) -> Result<()> {
    let mut bundle = Bundle::read(&folder.join("model.safetensors"))?;
    let (part, name) = name.split_once('.').expect("part.name");
    let part = match part {
        "tokenizer" => &mut bundle.tokenizer,
        _ => bundle.generator.as_mut().expect("a generator"),
    };
    let tensor = part.get_mut(name).expect("a tensor of the model");
    let mut values = tensor.flatten_all()?.to_vec1::<f32>()?;
    values[0] = value;
    *tensor = Tensor::from_vec(values, tensor.shape(), &Device::Cpu)?;
    bundle.write(&folder.join("bad.safetensors"), false)
}

#[test]
fn images_none_of_which_can_be_read_are_an_error() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = folder.path();
    prepare(at, "model.safetensors", 1)?;
    std::fs::create_dir(at.join("bad"))?;
    std::fs::write(at.join("bad/a.png"), "no image")?;
    for line in [
        "reconstruct bad --out r.png",
        "encode bad",
        "eval-vae bad --metrics psnr",
    ] {
        let line = format!("{line} --model model.safetensors --skip-bad-images");
        let (errors, code) = fails(at, &line);
        assert!(errors.contains("error: no image could be read"), "{errors}");
        assert!(errors.contains("hint: ") && code == Some(1), "{errors}");
    }
    Ok(())
}

#[test]
fn what_is_not_finite_becomes_no_picture_no_code_and_no_figure() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = folder.path();
    prepare(at, "model.safetensors", 1)?;
    succeeds(at, "encode images --model model.safetensors --save-noise");
    let reconstruct = "reconstruct images --model bad.safetensors --out out.png";
    let encode = "encode images --model bad.safetensors --out out.png";
    let eval = "eval-vae images --model bad.safetensors --metrics psnr --json out.png";
    let decode = "decode codes.safetensors --model bad.safetensors --force --out out.png";
    let sample = "sample --model bad.safetensors --class 3 --num 2 --out out.png";
    let (first, drawn, coded) = (
        "image `checkers/",
        "image 0",
        "image 0 of codes.safetensors",
    );
    for (name, commands) in [
        (
            "tokenizer.decoder.conv_out.bias",
            &[
                (reconstruct, first),
                (eval, first),
                (decode, coded),
                (sample, drawn),
            ][..],
        ),
        (
            "tokenizer.encoder.conv_in.bias",
            &[(reconstruct, first), (encode, first), (eval, first)],
        ),
        ("generator.head.bias", &[(sample, drawn)]),
    ] {
        for value in [f32::NAN, f32::INFINITY] {
            damage(at, name, value)?;
            for (line, image) in commands {
                let (errors, code) = fails(at, line);
                assert!(
                    errors.contains(image) && errors.contains("not finite"),
                    "{name} {value}: {line}: {errors}"
                );
                assert!(
                    errors.contains("hint: ") && code == Some(1),
                    "{line}: {errors}"
                );
                assert!(!at.join("out.png").exists(), "{line}");
            }
        }
    }
    // Noise that is saved with a value that is not finite.
    let mut codes = Codes::read(&at.join("codes.safetensors"))?;
    codes.noise = codes
        .noise
        .map(|noise| noise.affine(f64::NAN, 0.0))
        .transpose()?;
    codes.write(&at.join("noise.safetensors"), Format::Safetensors)?;
    let (errors, _) = fails(
        at,
        "encode images --model model.safetensors --noise noise.safetensors",
    );
    assert!(
        errors.contains("the given noise's values are not finite"),
        "{errors}"
    );
    Ok(())
}
