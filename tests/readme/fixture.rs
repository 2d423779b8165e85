//! Small versions of the files that the printed commands name: noise images in place of Tiny
//! ImageNet and ImageNet, networks with random weights.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Cursor;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use image::{ImageFormat, RgbImage};
use rdpm::error::Result;
use rdpm::model::perceptual::WIDTHS;
use rdpm::rng::{Purpose, normal};
use rdpm::store::safetensors;

const WNIDS: [&str; 2] = ["n01443537", "n02099601"];

/// Folder of the weights, like a user's cache folder.
pub const WEIGHTS: &str = "cache/rdpm/weights";

/// Makes all files in `root`.
pub fn make(root: &Path) -> Result<()> {
    let train = root.join("tiny-imagenet-200/train");
    for (class, wnid) in WNIDS.iter().enumerate() {
        let folder = train.join(wnid).join("images");
        fs::create_dir_all(&folder)?;
        for i in [0, 1, 2, 10, 11] {
            let path = folder.join(format!("{wnid}_{i}.JPEG"));
            fs::write(path, noise(class as u64, i)?)?;
        }
    }
    let val = root.join("tiny-imagenet-200/val/images");
    fs::create_dir_all(&val)?;
    for i in [0, 1, 10, 100] {
        fs::write(val.join(format!("val_{i}.JPEG")), noise(7, i)?)?;
    }
    for (class, name) in ["bolete", "dalmatian", "toucan"].iter().enumerate() {
        let folder = root.join("photos").join(name);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("0.png"), noise(class as u64, 0)?)?;
    }
    imagenet(&root.join("ILSVRC2012_img_train.tar"))?;
    let weights = root.join(WEIGHTS);
    fs::create_dir_all(&weights)?;
    perceptual(
        &weights.join("vgg16_features_f16.safetensors"),
        &weights.join("lpips_vgg_lin.safetensors"),
    )?;
    inception(&weights.join("fid_inception.safetensors"))
}

/// A noise image of 64×64. Its content decides its format, whatever its name.
fn noise(seed: u64, index: u64) -> Result<Vec<u8>> {
    let shape = [64 * 64 * 3];
    let draw = normal(seed, Purpose::Init, &[index], 0, &shape, &Device::Cpu)?;
    let pixels = ((draw * 64.0)? + 128.0)?
        .clamp(0f32, 255f32)?
        .to_dtype(DType::U8)?;
    let image = RgbImage::from_raw(64, 64, pixels.flatten_all()?.to_vec1()?);
    let mut png = Cursor::new(Vec::new());
    image.expect("64×64").write_to(&mut png, ImageFormat::Png)?;
    Ok(png.into_inner())
}

/// A tar that holds one tar per class.
fn imagenet(path: &Path) -> Result<()> {
    let mut outer = tar::Builder::new(File::create(path)?);
    for (class, wnid) in WNIDS.iter().enumerate() {
        let mut inner = tar::Builder::new(Vec::new());
        for i in 0..2 {
            add(
                &mut inner,
                &format!("{wnid}_{i}.JPEG"),
                &noise(class as u64, i)?,
            )?;
        }
        add(&mut outer, &format!("{wnid}.tar"), &inner.into_inner()?)?;
    }
    outer.finish()?;
    Ok(())
}

fn add(tar: &mut tar::Builder<impl std::io::Write>, name: &str, bytes: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, bytes)?;
    Ok(())
}

/// The first stage of Inception, with 64 features.
fn inception(path: &Path) -> Result<()> {
    let mut tensors = BTreeMap::new();
    for (name, o, i) in [
        ("Conv2d_1a_3x3", 32, 3),
        ("Conv2d_2a_3x3", 32, 32),
        ("Conv2d_2b_3x3", 64, 32),
    ] {
        let scale = (2.0 / (9 * i) as f64).sqrt();
        let draw = normal(
            5,
            Purpose::Init,
            &[(o + i) as u64],
            0,
            &[o, i, 3, 3],
            &Device::Cpu,
        )?;
        let conv = (draw.squeeze(0)? * scale)?;
        tensors.insert(format!("{name}.conv.weight"), conv);
        for (part, value) in [
            ("weight", 1f32),
            ("bias", 0.1),
            ("running_mean", 0.0),
            ("running_var", 1.0),
        ] {
            let vector = Tensor::full(value, o, &Device::Cpu)?;
            tensors.insert(format!("{name}.bn.{part}"), vector);
        }
    }
    safetensors::write(path, &tensors, &BTreeMap::new())
}

/// VGG16's convolutions and LPIPS's heads under their usual names.
fn perceptual(vgg: &Path, heads: &Path) -> Result<()> {
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
