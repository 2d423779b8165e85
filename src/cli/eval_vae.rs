//! `rdpm eval-vae`: how well a tokenizer reconstructs images and how it uses its codebook.
//!
//! Images are measured in batches, which ranks divide, or the jobs of an array: batch i is of the
//! images [i·B, (i+1)·B), whoever measures it, and all batches are added up in their order.

mod measured;
mod report;

use std::path::PathBuf;

use candle_core::Tensor;
use clap::ValueEnum;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Context;
use super::inputs::{Dealt, ImageArgs, Inputs, no_image};
use super::part::Part;
use super::parts::{Parts, damaged, write_identity};
use crate::data::Batch;
use crate::error::{Error, Result, said};
use crate::interrupt::{self, Interrupt};
use crate::metrics::inception::Output;
use crate::metrics::reconstruction::{Compared, Judge, Originals};
use crate::metrics::weights::{self, Network};
use crate::metrics::{FeatureNetwork, Inception, Preprocess};
use crate::model::Lpips;
use crate::model::perceptual::WIDTHS;
use crate::ops::Noise;
use crate::sample::{LatentDecoder, to_rgb};
use crate::store::atomic;
use crate::store::digest::hex;
use crate::store::npz::{Element, NpzWriter};
use crate::telemetry::Progress;
use crate::world::{Bytes, Parcel, Share, Work, World};
use measured::{Measured, Total};
use report::Found;

/// Evaluate a tokenizer: rFID, rsFID, PSNR, SSIM, LPIPS, codebook usage
///
/// Every image is center-cropped and resized to the model's size, then encoded and decoded. Metrics
/// are computed on 8-bit images, as they would be written.
///
/// Several processes of a launcher (see `rdpm launch`) divide the batches; the report is the same.
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
    /// Measure the batches I, I+N, I+2N, … only, and keep what is found in --work, so that N
    /// processes that nothing connects share the images; the same command without --part then
    /// reports on all. I counts from 0
    #[arg(long, value_name = "I/N", requires = "work")]
    pub(super) part: Option<Part>,
    /// The folder for parts; without --part, the report is of those in it
    #[arg(long, value_name = "FOLDER")]
    work: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Metric {
    Rfid,
    Rsfid,
    Psnr,
    Ssim,
    Lpips,
}

const WORK: Work = Work {
    unit: "batch",
    remedy: "nothing was written: start all ranks again",
};

const KEPT: &str = "nothing was written; the same command starts from scratch";

pub fn run(args: &Args, context: &Context) -> Result<()> {
    context.share(args.part.is_some(), WORK, |context, world| {
        evaluate(args, context, world)
    })
}

fn evaluate(args: &Args, context: &Context, world: &World) -> Result<()> {
    if let Some(path) = &args.json
        && world.is_first()
        && args.part.is_none()
    {
        atomic::check_writable(path)?;
    }
    // Rank 0 alone keeps an index of the images, and downloads weights.
    let (inputs, (judge, lpips_weights)) = world.first_then(|| {
        let inputs = args.images.open(context)?;
        let judge = args.judge(&inputs)?;
        Ok((inputs, judge))
    })?;
    let steps = inputs.model.tokenizer.quantizer.steps();
    let pass = Pass {
        inputs: &inputs,
        judge: &judge,
        decoder: LatentDecoder::new(&inputs.model.tokenizer),
        seed: args.images.seed,
        // z'_1 .. z'_T; without --steps-curve, only the last.
        first: if args.steps_curve { 1 } else { steps },
        steps,
    };
    let identity = || args.identity(&inputs, &judge, &lpips_weights);
    if let (Some(part), Some(parts)) = (args.part, args.parts()) {
        let count = pass.write_part(part, &parts, &identity()?)?;
        let path = parts.path(part);
        let all = inputs.source.len();
        return super::print(&format!("{}: {count} of {all} images\n", path.display()));
    }
    if world.size() > 1 {
        let identity = identity()?;
        let facts = identity.as_object().into_iter().flatten();
        let facts: Vec<_> = facts
            .map(|(key, value)| (format!("the {key}"), value.to_string()))
            .collect();
        world.same(&facts)?;
    }
    let mut total = pass.nothing();
    match args.parts() {
        Some(parts) if world.is_first() => pass.join(&parts, &identity()?, &mut total)?,
        Some(_) => {}
        None => pass.measure_all(world, &mut total)?,
    }
    if !world.is_first() {
        return Ok(());
    }
    if total.images == 0 {
        return Err(no_image());
    }
    args.report(&pass, &total, &lpips_weights)
}

/// What measures images.
struct Pass<'a> {
    inputs: &'a Inputs,
    judge: &'a Judge,
    decoder: LatentDecoder<'a>,
    /// Of the noise.
    seed: u64,
    /// The first and the last t whose z'_t are measured.
    first: usize,
    steps: usize,
}

impl Pass<'_> {
    fn nothing(&self) -> Total {
        let codes = self.inputs.model.config.quantizer.codebook_size;
        Total::new(self.steps - self.first + 1, self.steps, codes)
    }

    /// Measures batch `number`, the next of `dealt`.
    fn measure(&self, dealt: &mut Dealt, number: usize) -> Result<Measured> {
        let all = self.inputs.numbers(number).len();
        let Some(batch) = dealt.batch(number)? else {
            return Ok(Measured {
                skipped: all as u32,
                ..Measured::default()
            });
        };
        let pictures = to_rgb(&batch.images)?;
        let (sums, codes) = quantized(self.inputs, &batch, self.seed)?;
        let name = |i: usize| self.inputs.name(batch.indices[i]);
        let step = |t: usize| {
            let images = self.decoder.images(&sums.get(t)?, name)?;
            match t == self.steps {
                true => self.judge.compare(&pictures, &images),
                false => self.judge.compare_step(&pictures, &images),
            }
        };
        Ok(Measured {
            skipped: (all - batch.indices.len()) as u32,
            originals: Measured::digests(&pictures),
            features: Compared {
                features: self.judge.features(&pictures)?,
                ..Compared::default()
            },
            codes: Measured::codes(&codes)?,
            steps: (self.first..=self.steps).map(step).collect::<Result<_>>()?,
        })
    }

    /// Measures all images together with the other ranks, and adds them up at rank 0.
    fn measure_all(&self, world: &World, total: &mut Total) -> Result<()> {
        let (inputs, batches) = (self.inputs, self.inputs.batches());
        if world.is_first() && batches < world.size() {
            tracing::warn!(
                "{batches} batches for {} processes: the others measure nothing; choose a smaller --batch-size",
                world.size()
            );
        }
        let all = inputs.source.len();
        let mut progress = (world.is_first()).then(|| Progress::new("eval-vae", all as u64, 0));
        let interrupt = Interrupt::listen()?;
        let mut dealt = inputs.dealt(world.share())?;
        let stopped = world.parcels(
            0..batches,
            || interrupt.requested(),
            |number| self.measure(&mut dealt, number),
            |number, measured: Measured| {
                total.add(&measured)?;
                if let Some(progress) = &mut progress {
                    progress.set(inputs.numbers(number).end as u64, "");
                }
                Ok(())
            },
        )?;
        let Some(next) = stopped.filter(|next| *next < batches) else {
            return Ok(());
        };
        world.part()?;
        let done = inputs.numbers(next).start;
        let error = interrupt::stopped(format!("after {done} of {all} images"), KEPT.to_string());
        Err(match world.is_first() {
            true => error,
            false => said(&error),
        })
    }

    /// Measures the batches of `part` and writes what was found, unless it is there: an array
    /// `batch-i` for each. Returns their number of images.
    fn write_part(&self, part: Part, parts: &Parts, identity: &Value) -> Result<usize> {
        let inputs = self.inputs;
        let batches = || part.of(inputs.batches());
        let count = batches().map(|batch| inputs.numbers(batch).len()).sum();
        if !parts.lacks(part, identity)? {
            return Ok(count);
        }
        let (mut progress, mut done) = (Progress::new("eval-vae", count as u64, 0), 0);
        let interrupt = Interrupt::listen()?;
        let mut dealt = inputs.dealt(Share {
            rank: part.index,
            size: part.count,
        })?;
        atomic::write_with(&parts.path(part), |file| {
            let mut npz = NpzWriter::new(file);
            write_identity(&mut npz, identity, part)?;
            for number in batches() {
                interrupt.check(
                    || format!("after {done} of {count} images of part {part}"),
                    || "nothing of this part is kept; the same command starts it again".into(),
                )?;
                let mut bytes = Bytes::default();
                self.measure(&mut dealt, number)?.pack(&mut bytes);
                let bytes = bytes.into_vec();
                npz.array(&array(number), Element::U8, &[bytes.len()])?;
                npz.write(&bytes)?;
                done += inputs.numbers(number).len();
                progress.set(done as u64, "");
            }
            npz.finish()?;
            Ok(())
        })?;
        Ok(count)
    }

    /// Adds up what all parts found.
    fn join(&self, parts: &Parts, identity: &Value, total: &mut Total) -> Result<()> {
        let mut archives = parts.open(identity)?;
        let count = archives.len();
        for number in 0..self.inputs.batches() {
            let npz = &mut archives[number % count];
            let path = npz.path().to_path_buf();
            let mut bytes = Vec::new();
            let read = npz.bytes(&array(number), usize::MAX, 1 << 20, |piece| {
                bytes.extend_from_slice(piece);
                Ok(())
            });
            let measured = read.and_then(|()| {
                let mut bytes = Bytes::from(bytes);
                let measured = Measured::unpack(&mut bytes)?;
                bytes.end()?;
                Ok(measured)
            });
            total.add(&measured.map_err(|error: Error| damaged(&path, &error))?)?;
        }
        Ok(())
    }
}

/// The name of a batch's array in its part.
fn array(number: usize) -> String {
    format!("batch-{number}")
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
    /// The parts of a job array, if there is a folder for them.
    fn parts(&self) -> Option<Parts> {
        Some(Parts {
            folder: self.work.clone()?,
            what: "images or metrics",
            otherwise: "without --work, all images are measured here",
            elsewhere: "choose another --work",
        })
    }

    /// Everything that decides the report, and which images are measured together.
    fn identity(&self, inputs: &Inputs, judge: &Judge, lpips: &[String]) -> Result<Value> {
        let config = serde_json::to_vec(&inputs.model.config)?;
        let network = judge.inception.as_ref().map(|inception| {
            let outputs: Vec<_> = inception.taps().iter().map(|tap| tap.name).collect();
            json!([inception.weights_hash(), inception.preprocess(), outputs])
        });
        Ok(json!({
            "version": env!("CARGO_PKG_VERSION"),
            "model": inputs.model.tokenizer_hash()?,
            "config": hex(&Sha256::digest(config)),
            "seed": self.images.seed,
            "data": inputs.source.fingerprint()?,
            "batch-size": inputs.batch_size(),
            "skip-bad-images": self.images.skip_bad_images,
            "psnr": judge.psnr,
            "ssim": judge.ssim,
            "lpips": lpips,
            "inception": network,
            "steps-curve": self.steps_curve,
        }))
    }

    /// Prints and writes what was found.
    fn report(&self, pass: &Pass, total: &Total, lpips_weights: &[String]) -> Result<()> {
        let (model, judge) = (&pass.inputs.model, pass.judge);
        let originals = Originals::new(&total.features)?;
        let of_step = |quality, outputs: usize| {
            let distances = (0..outputs).map(|output| originals.distance(output, quality));
            distances.collect::<Result<Vec<_>>>()
        };
        // Before the last step only rFID, which uses Inception's first output: the eigenvalues take
        // seconds.
        let before = usize::from(self.asks(Metric::Rfid));
        let qualities = total.qualities.iter().zip(pass.first..);
        let distances = qualities
            .map(|(quality, t)| {
                let all = originals.outputs();
                of_step(quality, if t == pass.steps { all } else { before })
            })
            .collect::<Result<Vec<_>>>()?;
        let found = Found {
            model: &model.path,
            tokenizer: model.tokenizer_hash()?,
            config: &model.config,
            seed: self.images.seed,
            images: total.images,
            skipped: total.skipped,
            originals: total.originals(),
            judge,
            lpips_weights,
            qualities: &total.qualities,
            distances: &distances,
            usage: &total.usage,
        };
        // Printed first, so that the result is not lost if the disk fails.
        super::print(&found.table())?;
        match &self.json {
            Some(path) => atomic::write_file(path, format!("{:#}\n", found.report()?).as_bytes()),
            None => Ok(()),
        }
    }

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

    use super::*;
    use crate::config::Config;
    use crate::data::Source;
    use crate::data::shapes::Shapes;
    use crate::error::report;
    use crate::model::Tokenizer;
    use crate::store::Scope;
    use crate::store::bundle::Bundle;
    use candle_core::Device;
    use clap::Parser;

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
