//! Runs the README's commands in a shell as printed, one after the other, on a small data set.
//!
//! The commands are only extended by [`SHORTER`], to keep the two runs short. The files that they
//! name are made here, small: shards of noise in the folders of two wnids, and a VGG16 of random
//! weights with LPIPS heads of ones.

use std::collections::HashMap;
use std::fs::File;
use std::io::Cursor;
use std::path::Path;
use std::process::Command;

use candle_core::{DType, Device, Tensor};
use flate2::{Compression, write::GzEncoder};
use image::{ImageFormat, RgbImage};
use rdpm::error::Result;
use rdpm::model::perceptual::WIDTHS;
use rdpm::rng::{Purpose, normal};

/// Arguments added to a subcommand.
const SHORTER: [(&str, &str); 2] = [
    (
        "rdpm train-vae ",
        " --steps 2 --set tokenizer.ch=32 --set tokenizer.num_res_blocks=1 --set quantizer.codebook_size=64 --set train_vae.batch_size=2",
    ),
    (
        "rdpm train-gen ",
        " --steps 2 --set generator.depth=1 --set generator.width=64 --set generator.heads=2 --set train_gen.batch_size=2",
    ),
];

#[test]
fn the_commands_on_a_data_set_run_as_printed() -> Result<()> {
    let readme = include_str!("../README.md");
    let (_, section) = readme.split_once("## Your own images").expect("a section");
    let block = section.split("```").nth(1).expect("a block of commands");
    let commands: Vec<&str> = block.trim().lines().collect();
    assert_eq!(commands.len(), 4, "{block}");
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    shard(&at("train-000.tar.gz"), 4)?;
    shard(&at("val-000.tar.gz"), 2)?;
    weights(
        &at("vgg16_features_f16.safetensors"),
        &at("lpips_vgg_lin.safetensors"),
    )?;
    let program = Path::new(env!("CARGO_BIN_EXE_rdpm"))
        .parent()
        .expect("a folder");
    let path = format!("{}:{}", program.display(), std::env::var("PATH")?);
    for command in commands {
        let added = SHORTER.iter().find(|(start, _)| command.starts_with(start));
        let line = format!("{command}{}", added.map_or("", |(_, added)| added));
        let output = Command::new("sh")
            .args(["-c", &line])
            .current_dir(folder.path())
            .env("PATH", &path)
            .output()?;
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}\n{told}");
    }
    let sheet = image::open(at("samples.png"))?;
    assert!(sheet.width() >= 4 * 64 && at("model.safetensors").exists());
    Ok(())
}

/// `count` images of noise for each of two wnids.
fn shard(path: &Path, count: u64) -> Result<()> {
    let mut tar = tar::Builder::new(GzEncoder::new(File::create(path)?, Compression::fast()));
    for (class, wnid) in ["n01443537", "n02099601"].iter().enumerate() {
        for i in 0..count {
            let draw = normal(
                class as u64,
                Purpose::Init,
                &[i],
                0,
                &[64 * 64 * 3],
                &Device::Cpu,
            )?;
            let pixels = ((draw * 64.0)? + 128.0)?
                .clamp(0f32, 255f32)?
                .to_dtype(DType::U8)?;
            let image = RgbImage::from_raw(64, 64, pixels.flatten_all()?.to_vec1()?);
            let mut png = Cursor::new(Vec::new());
            image.expect("64×64").write_to(&mut png, ImageFormat::Png)?;
            let png = png.into_inner();
            let mut header = tar::Header::new_gnu();
            header.set_size(png.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, format!("{wnid}/{i}.png"), &png[..])?;
        }
    }
    tar.into_inner()?.finish()?;
    Ok(())
}

/// VGG16's convolutions and LPIPS's heads under their usual names.
fn weights(vgg: &Path, heads: &Path) -> Result<()> {
    let (mut convolutions, mut lins) = (HashMap::new(), HashMap::new());
    let numbers: [&[usize]; 5] = [
        &[0, 2],
        &[5, 7],
        &[10, 12, 14],
        &[17, 19, 21],
        &[24, 26, 28],
    ];
    let mut input = 3;
    for (k, (numbers, width)) in numbers.iter().zip(WIDTHS).enumerate() {
        for number in *numbers {
            let scale = (2.0 / (9 * input) as f64).sqrt();
            let draw = normal(
                7,
                Purpose::Init,
                &[*number as u64],
                0,
                &[width, input, 3, 3],
                &Device::Cpu,
            )?;
            let weight = (draw.squeeze(0)? * scale)?.to_dtype(DType::F16)?;
            convolutions.insert(format!("features.{number}.weight"), weight);
            let bias = Tensor::zeros(width, DType::F16, &Device::Cpu)?;
            convolutions.insert(format!("features.{number}.bias"), bias);
            input = width;
        }
        lins.insert(
            format!("lin{k}.model.1.weight"),
            Tensor::ones((1, width, 1, 1), DType::F16, &Device::Cpu)?,
        );
    }
    candle_core::safetensors::save(&convolutions, vgg)?;
    candle_core::safetensors::save(&lins, heads)?;
    Ok(())
}
