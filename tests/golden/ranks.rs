//! `eval-vae` with all of its networks in several processes.

use std::path::Path;
use std::process::Command;

use candle_core::Device;
use image::{Rgb, RgbImage};
use rdpm::config::Config;
use rdpm::model::Tokenizer;
use rdpm::store::Scope;
use rdpm::store::bundle::Bundle;

/// Eight images and `model.safetensors`, a fresh tokenizer for them.
fn fill(folder: &Path) {
    let settings = [
        "data.image_size=32",
        "tokenizer.ch=8",
        "tokenizer.ch_mult=[1,2]",
        "tokenizer.num_res_blocks=1",
        "tokenizer.embed_dim=4",
        "tokenizer.norm_groups=4",
        "quantizer.codebook_size=24",
        "quantizer.steps=2",
    ];
    let config = Config::load(Some("smoke"), &settings.map(String::from)).expect("a configuration");
    let scope = Scope::init(1, &Device::Cpu);
    Tokenizer::new(&config, &scope).expect("a tokenizer");
    let bundle = Bundle::new(config, scope.finish().tensors());
    let path = folder.join("model.safetensors");
    bundle.write(&path, false).expect("written");
    for i in 0..8u32 {
        let image = RgbImage::from_fn(32, 32, |x, y| {
            Rgb([x * (i + 1), y * 7 + i, x * y + 30 * i].map(|value| value as u8))
        });
        image
            .save(folder.join(format!("{i}.png")))
            .expect("written");
    }
}

#[test]
#[ignore = "needs RDPM_WEIGHTS, the folder that scripts/weights.sh makes"]
fn all_metrics_of_a_tokenizer_are_the_same_for_any_number_of_processes() {
    let weights = std::env::var("RDPM_WEIGHTS").expect("RDPM_WEIGHTS is set");
    let folder = tempfile::tempdir().expect("a folder");
    fill(folder.path());
    let eval = |launch: &str, more: &str| {
        let line = format!(
            "{launch} eval-vae *.png -q --model model.safetensors --batch-size 2 --steps-curve \
             --weights {weights}/fid_inception.safetensors \
             --vgg {weights}/vgg16_features_f32.safetensors \
             --lpips {weights}/lpips_vgg_lin.safetensors {more}"
        );
        let output = Command::new(env!("CARGO_BIN_EXE_rdpm"))
            .args(line.split_whitespace())
            .current_dir(folder.path())
            .output()
            .expect("it starts");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {told}");
    };
    let report = |name: &str| std::fs::read_to_string(folder.path().join(name)).expect("a report");
    eval("", "--json 1.json");
    let one = report("1.json");
    for name in ["rfid", "rsfid", "psnr", "ssim", "lpips", "steps_curve"] {
        assert!(one.contains(&format!("\"{name}\"")), "{name}: {one}");
    }
    // With half of the threads each.
    eval("launch --nproc 2 --", "--json 2.json");
    assert_eq!(report("2.json"), one);
    for part in 0..2 {
        eval("", &format!("--work parts --part {part}/2"));
    }
    eval("", "--work parts --json parts.json");
    assert_eq!(report("parts.json"), one);
}
