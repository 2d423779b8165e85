//! `rdpm eval-vae`: how well a tokenizer reconstructs images and how it uses its codebook.

mod report;

use std::path::PathBuf;

use candle_core::Tensor;
use clap::ValueEnum;

use super::Context;
use super::inputs::{ImageArgs, Inputs};
use crate::data::Batch;
use crate::error::Result;
use crate::metrics::images::PixelHash;
use crate::metrics::inception::Output;
use crate::metrics::reconstruction::{Judge, Originals, Quality};
use crate::metrics::weights::{self, Network};
use crate::metrics::{Inception, Preprocess};
use crate::model::Lpips;
use crate::model::perceptual::WIDTHS;
use crate::ops::Noise;
use crate::sample::{LatentDecoder, to_rgb};
use crate::store::atomic;
use crate::train::usage::{Usage, choices};
use report::Found;

/// Evaluate a tokenizer: rFID, rsFID, PSNR, SSIM, LPIPS, codebook usage
///
/// Every image is center-cropped and resized to the model's size, then encoded and decoded. Metrics
/// are computed on 8-bit images, as they would be written.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    images: ImageArgs,
    /// Which metrics to compute
    #[arg(long, value_enum, value_name = "LIST", value_delimiter = ',',
          default_values_t = [Metric::Rfid, Metric::Rsfid, Metric::Psnr, Metric::Ssim, Metric::Lpips])]
    metrics: Vec<Metric>,
    /// Also rFID and PSNR of every z'_t: images decoded from the first t steps only
    #[arg(long)]
    steps_curve: bool,
    /// How images are resized for Inception
    #[arg(long, value_enum, default_value_t)]
    preprocess: Preprocess,
    /// Inception's weights: a file, http(s)://…, or hf://owner/repo/file [default: from the cache
    /// folder]
    #[arg(long, value_name = "FILE|URL")]
    weights: Option<String>,
    /// VGG16's weights, for LPIPS
    #[arg(long, value_name = "FILE|URL")]
    vgg: Option<String>,
    /// The weights of LPIPS's five linear heads
    #[arg(long, value_name = "FILE|URL")]
    lpips: Option<String>,
    /// Download missing weights from their authors' sites
    #[arg(long)]
    download: bool,
    /// Write the report to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Metric {
    Rfid,
    Rsfid,
    Psnr,
    Ssim,
    Lpips,
}

pub fn run(args: &Args, context: &Context) -> Result<()> {
    if let Some(path) = &args.json {
        atomic::check_writable(path)?;
    }
    let inputs = args.images.open(context)?;
    let (judge, lpips_weights) = args.judge(&inputs)?;
    let model = &inputs.model;
    let steps = model.tokenizer.quantizer.steps();
    let codes = model.config.quantizer.codebook_size;
    let mut originals = Quality::default();
    // One entry per z'_1 .. z'_T; without --curve, only the last.
    let first = if args.steps_curve { 1 } else { steps };
    let mut qualities = vec![Quality::default(); steps - first + 1];
    let mut usage = Usage::new(steps, codes);
    let mut pixels = PixelHash::default();
    let decoder = LatentDecoder::new(&model.tokenizer);
    let (count, skipped) = inputs.each("eval-vae", |batch| {
        let pictures = to_rgb(&batch.images)?;
        pictures.iter().for_each(|picture| pixels.add(picture));
        judge.add_features(&pictures, &mut originals)?;
        let (sums, chosen) = quantized(&inputs, &batch, args.images.seed)?;
        usage.add(&choices([&chosen], steps, codes)?);
        let name = |i: usize| inputs.name(batch.indices[i]);
        for (t, quality) in (first..=steps).zip(&mut qualities) {
            let images = decoder.images(&sums.get(t)?, name)?;
            match t == steps {
                true => judge.compare(&pictures, &images, quality)?,
                false => judge.compare_step(&pictures, &images, quality)?,
            }
        }
        Ok(())
    })?;
    let originals = Originals::new(&originals)?;
    let of_step = |quality, outputs: usize| {
        let distances = (0..outputs).map(|output| originals.distance(output, quality));
        distances.collect::<Result<Vec<_>>>()
    };
    // Before the last step only rFID, which uses Inception's first output: the eigenvalues take
    // seconds.
    let before = usize::from(args.asks(Metric::Rfid));
    let distances = qualities
        .iter()
        .zip(first..)
        .map(|(quality, t)| {
            let all = originals.outputs();
            of_step(quality, if t == steps { all } else { before })
        })
        .collect::<Result<Vec<_>>>()?;
    let found = Found {
        model: &model.path,
        tokenizer: model.tokenizer_hash()?,
        config: &model.config,
        seed: args.images.seed,
        images: count,
        skipped,
        originals: pixels.finish(),
        judge: &judge,
        lpips_weights: &lpips_weights,
        qualities: &qualities,
        distances: &distances,
        usage: &usage,
    };
    // Printed first, so that the result is not lost if the disk fails.
    super::print(&found.table())?;
    match &args.json {
        Some(path) => atomic::write_file(path, format!("{:#}\n", found.report()?).as_bytes()),
        None => Ok(()),
    }
}

/// z'_0 .. z'_T and the codes [T,B,h,w] of a batch.
fn quantized(inputs: &Inputs, batch: &Batch, seed: u64) -> Result<(Tensor, Tensor)> {
    let tokenizer = &inputs.model.tokenizer;
    let v = tokenizer.encode(&batch.images)?;
    inputs.check_finite(&v, batch, "its latents")?;
    let noise = Noise::Drawn {
        seed,
        indices: &batch.indices,
    };
    let quantized = tokenizer.quantizer.quantize(&v, &noise)?;
    Ok((quantized.sums, quantized.codes))
}

impl Args {
    fn asks(&self, metric: Metric) -> bool {
        self.metrics.contains(&metric)
    }

    /// The networks that the metrics need, and the hashes of LPIPS's two files.
    fn judge(&self, inputs: &Inputs) -> Result<(Judge, Vec<String>)> {
        let device = &inputs.model.device;
        let locate = |network, asked: &Option<String>| {
            weights::locate(network, asked.as_deref(), self.download)
        };
        let outputs: Vec<Output> = [
            (Metric::Rfid, Output::Pool2048),
            (Metric::Rsfid, Output::Spatial),
        ]
        .into_iter()
        .filter_map(|(metric, output)| self.asks(metric).then_some(output))
        .collect();
        let inception = match outputs.is_empty() {
            true => None,
            false => {
                let path = locate(Network::Inception, &self.weights)?;
                Some(Inception::open(&path, &outputs, self.preprocess, device)?)
            }
        };
        let (mut lpips, mut hashes) = (None, Vec::new());
        if self.asks(Metric::Lpips) {
            let vgg = locate(Network::Vgg16, &self.vgg)?;
            let heads = locate(Network::LpipsHeads, &self.lpips)?;
            let ((vgg, of_vgg), (heads, of_heads)) =
                (weights::read_hashed(&vgg)?, weights::read_hashed(&heads)?);
            hashes = vec![of_vgg, of_heads];
            lpips = Some(Lpips::new(&WIDTHS, &vgg, &heads, device)?);
        }
        let judge = Judge {
            inception,
            lpips,
            psnr: self.asks(Metric::Psnr) || self.steps_curve,
            ssim: self.asks(Metric::Ssim),
            device: device.clone(),
        };
        Ok((judge, hashes))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::Device;
    use clap::Parser;
    use serde_json::Value;

    use super::*;
    use crate::config::Config;
    use crate::data::Source;
    use crate::data::shapes::Shapes;
    use crate::error::report;
    use crate::model::Tokenizer;
    use crate::store::Scope;
    use crate::store::bundle::Bundle;

    const STEPS: usize = 3;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    /// The report of `eval-vae` on seven drawings and a fresh tokenizer.
    fn eval(folder: &Path, arguments: &[&str]) -> Result<Value> {
        let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
        let mut config = Config::load(Some("demo"), &[])?;
        (config.tokenizer.ch, config.quantizer.codebook_size) = (32, 16);
        config.quantizer.steps = STEPS;
        let scope = Scope::init(1, &Device::Cpu);
        Tokenizer::new(&config, &scope)?;
        let model = path("model.safetensors");
        Bundle::new(config, scope.finish().tensors()).write(model.as_ref(), false)?;
        let shapes = Shapes::new(1, 7);
        for i in 0..shapes.len() {
            shapes
                .read(i)?
                .image
                .save(folder.join(format!("{i}.png")))?;
        }
        let (images, json) = (path("*.png"), path("report.json"));
        let fixed = ["eval-vae", &images, "--model", &model, "--json", &json];
        let line = Line::try_parse_from(fixed.iter().chain(arguments))?;
        run(&line.args, &Context::new(Default::default(), 2))?;
        Ok(serde_json::from_slice(&std::fs::read(&json)?)?)
    }

    #[test]
    fn the_report_has_every_step_and_does_not_depend_on_the_batch() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let asked = ["--metrics", "psnr,ssim", "--steps-curve"];
        let one = eval(
            folder.path(),
            &[&asked[..], &["--batch-size", "7"]].concat(),
        )?;
        let two = eval(
            folder.path(),
            &[&asked[..], &["--batch-size", "2"]].concat(),
        )?;
        assert_eq!(one, two);
        let metrics = one["metrics"].as_object().unwrap();
        let names: Vec<&String> = metrics.keys().collect();
        assert_eq!(names, ["psnr", "ssim", "codes_used", "perplexity"]);
        let curve = one["steps_curve"]["psnr"].as_array().unwrap();
        assert_eq!(curve.len(), STEPS);
        assert_eq!(curve.last(), Some(&one["metrics"]["psnr"]["value"]));
        assert_eq!(one["metrics"]["ssim"]["samples"], 7);
        let used = one["metrics"]["codes_used"]["value"].as_array().unwrap();
        assert!(used.len() == STEPS && used.iter().all(|n| n.as_u64() >= Some(1)));
        Ok(())
    }

    #[test]
    fn a_report_that_cannot_be_written_is_found_before_any_work() -> Result<()> {
        let line = ["eval-vae", "no/images", "--json", "/no/such/folder/r.json"];
        let args = Line::try_parse_from(line)?.args;
        let error = run(&args, &Context::new(Default::default(), 2)).unwrap_err();
        let (text, _) = report(&error);
        assert!(
            text.contains("cannot write /no/such/folder/r.json"),
            "{text}"
        );
        Ok(())
    }

    #[test]
    fn weights_that_are_not_there_are_named_before_any_work() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let error = eval(folder.path(), &["--weights", "/no/inception.pth"]).unwrap_err();
        let (text, code) = report(&error);
        assert!(
            text.contains("/no/inception.pth") && text.contains("--weights"),
            "{text}"
        );
        assert_eq!(code, 2);
        Ok(())
    }
}
