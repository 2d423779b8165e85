//! The demo's promise: samples show their class, according to a classifier trained on the drawings.
//!
//! `cargo test --release --test demo_judge -- --ignored` runs the demo with three seeds, five
//! minutes each.

mod judge;

use std::io::Read;
use std::path::Path;
use std::process::Command;

use judge::{Judge, Pictures};
use rdpm::data::shapes::NAMES;
use rdpm::error::{Context, Result};
use rdpm::store::bundle::Bundle;

#[test]
fn a_short_demo_leaves_all_it_promises_and_is_not_overwritten() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = folder.path();
    let demo = "demo --set train_vae.steps=2 --set train_gen.steps=2 --seed 4";
    let demo: Vec<&str> = demo.split(' ').collect();
    rdpm(&demo, at)?;
    for name in ["samples.png", "reconstructions.png", "curves.png"] {
        image::open(at.join("demo").join(name))?;
    }
    let bundle = Bundle::read(&at.join("demo/demo.safetensors"))?;
    assert!(bundle.generator.is_some());
    assert_eq!(bundle.classes.as_array().map(Vec::len), Some(10));
    assert!(rdpm(&demo, at).is_err());
    // A demo without its bundle continues from where it was, but only with its own seed.
    std::fs::remove_file(at.join("demo/demo.safetensors"))?;
    assert!(rdpm(&["demo", "--seed", "5"], at).is_err());
    rdpm(&demo, at)?;
    let again = Bundle::read(&at.join("demo/demo.safetensors"))?;
    assert_eq!(again.tokenizer_hash()?, bundle.tokenizer_hash()?);
    Ok(())
}

/// Judges the samples of a demo that was run elsewhere, and fails below RDPM_JUDGE_BAR (default
/// 0.9).
#[test]
#[ignore = "judges the .npz that RDPM_JUDGE names"]
fn samples_named_by_the_environment() -> Result<()> {
    let path = std::env::var("RDPM_JUDGE").context("RDPM_JUDGE")?;
    let bar: f64 = match std::env::var("RDPM_JUDGE_BAR") {
        Ok(bar) => bar.parse()?,
        Err(_) => 0.9,
    };
    let share = right(&Judge::trained(1)?, &read_npz(Path::new(&path))?)?;
    assert!(share >= bar, "{share}");
    Ok(())
}

#[test]
fn the_judge_knows_drawings_it_has_not_seen() -> Result<()> {
    let share = right(&Judge::trained(1)?, &Pictures::drawn(5, 2000)?)?;
    assert!(share >= 0.98, "{share}");
    Ok(())
}

#[test]
#[ignore = "runs the whole demo three times: 15 minutes"]
fn samples_of_the_demo_are_what_their_class_says() -> Result<()> {
    let judge = Judge::trained(1)?;
    for seed in 0..3 {
        let folder = tempfile::tempdir()?;
        rdpm(
            &["demo", "--out", "demo", "--seed", &seed.to_string()],
            folder.path(),
        )?;
        let sample = [
            "sample",
            "--model",
            "demo/demo.safetensors",
            "--class",
            "all",
            "--num",
            "200",
        ];
        rdpm(
            &[&sample[..], &["--out", "samples.npz"]].concat(),
            folder.path(),
        )?;
        let share = right(&judge, &read_npz(&folder.path().join("samples.npz"))?)?;
        assert!(share >= 0.9, "seed {seed}: {share}");
    }
    Ok(())
}

/// The share of images that the judge assigns to their label's class; prints the share of every
/// class.
fn right(judge: &Judge, pictures: &Pictures) -> Result<f64> {
    let agrees = judge.agrees(pictures)?;
    for (class, name) in NAMES.iter().enumerate() {
        let own: Vec<bool> = agrees
            .iter()
            .zip(&pictures.labels)
            .filter(|(_, label)| **label as usize == class)
            .map(|(agrees, _)| *agrees)
            .collect();
        let right = own.iter().filter(|a| **a).count();
        eprintln!("{name}: {right} of {}", own.len());
    }
    let share = agrees.iter().filter(|a| **a).count() as f64 / agrees.len() as f64;
    eprintln!("all: {share}");
    Ok(share)
}

fn rdpm(arguments: &[&str], folder: &Path) -> Result<()> {
    let status = Command::new(env!("CARGO_BIN_EXE_rdpm"))
        .args(arguments)
        .current_dir(folder)
        .status()?;
    anyhow::ensure!(status.success(), "rdpm {arguments:?}: {status}");
    Ok(())
}

/// `arr_0` and `arr_1` of a file that `rdpm sample` wrote.
fn read_npz(path: &Path) -> Result<Pictures> {
    let mut zip = zip::ZipArchive::new(std::fs::File::open(path)?)?;
    let mut array = |name: &str| -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        zip.by_name(name)?.read_to_end(&mut bytes)?;
        let header = usize::from(u16::from_le_bytes([bytes[8], bytes[9]])) + 10;
        Ok(bytes.split_off(header))
    };
    let pictures = array("arr_0.npy")?;
    // The model's classes are the folders of the drawings, sorted by name.
    let mut order: Vec<u32> = (0..NAMES.len() as u32).collect();
    order.sort_by_key(|class| NAMES[*class as usize]);
    let labels = array("arr_1.npy")?
        .chunks(8)
        .map(|b| {
            let label = i64::from_le_bytes(b.try_into()?);
            order.get(label as usize).copied().context("a label")
        })
        .collect::<Result<_>>()?;
    Ok(Pictures::from_bytes(&pictures, labels))
}
