//! `rdpm demo`: from nothing to samples. It draws labelled images, trains both stages on them with
//! configs/demo.toml, and leaves a bundle and images that show what the model learned.
//!
//! Budgets are in steps, so a busy machine changes the run time but no result.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candle_core::Device;
use rayon::prelude::*;
use serde_json::Value;

use super::{Context, ScaleArgs};
use crate::config::Config;
use crate::data::shapes::{NAMES, Shapes};
use crate::data::{Source, augment, open};
use crate::error::{self, Context as _, Error, Result, hinted, interrupted, usage};
use crate::ops::Noise;
use crate::sample::{Draws, Pretrained, SampleOptions, decode, grid, named_rgb, png, save_png};
use crate::store::atomic;
use crate::store::model::{self, Weights};
use crate::store::run::RunFolder;
use crate::telemetry::curves::{Along, Curve, Panel, draw};
use crate::telemetry::{MetricsLog, Progress, shell};
use crate::train::start::{Request, resumed_config};
use crate::train::{start_generator, start_vae};
use crate::world::World;

/// Drawings to train on, and held-out drawings.
const TRAIN: usize = 8_000;
const VAL: usize = 100;
/// Per class on the sheets.
const PAIRS: usize = 4;
const SAMPLES: usize = 10;

/// Train a small model on drawn shapes and sample it: no download, minutes on two CPU cores
///
/// If a demo is interrupted, start it again to continue where it stopped.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder for all output
    #[arg(long, value_name = "DIR", default_value = "demo")]
    out: PathBuf,
    /// Seed of the drawings and of every random number
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Change one value of configs/demo.toml (repeatable)
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    sets: Vec<String>,
    #[command(flatten)]
    scale: ScaleArgs,
}

/// The folder of a demo.
struct Place<'a>(&'a Path);

impl Place<'_> {
    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn bundle(&self) -> PathBuf {
        self.at("demo.safetensors")
    }
}

pub fn run(args: &Args, context: &Context) -> Result<()> {
    let (begin, place) = (Instant::now(), Place(&args.out));
    if place.bundle().exists() {
        return Err(hinted(
            format!("{} holds a finished demo", args.out.display()),
            "look at its images, choose another --out, or remove it",
        ));
    }
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot make {}", args.out.display()))?;
    draw_pictures(&place, args.seed)?;
    let device = context.device()?;
    let mut config = Config::load(Some("demo"), &args.sets)?;
    config.data.train = vec![place.at("drawings/train").display().to_string()];
    config.data.val = vec![place.at("drawings/val").display().to_string()];
    let request = |stage: &str| request(&place, stage, args, &config, &device, context.threads);
    let vae = start_vae::train(&request("train-vae")?, None).map_err(again)?;
    let generator = request("train-gen")?;
    let options = start_generator::Options {
        vae: generator.resume.is_none().then(|| vae.clone()),
        cache: Some(place.at("latents.cache")),
        cache_part: None,
        init: None,
    };
    let run = start_generator::train(&generator, &options).map_err(again)?;
    let curves = place.at("curves.png");
    save_png(&draw(&panels(&vae, &run)?, Along::Steps)?, &curves)?;
    // Written last, because it marks the demo as finished; the images are made from it.
    let unfinished = place.at(".demo.safetensors");
    model::load(&run, Weights::Ema)?.write(&unfinished, false)?;
    let trained = Pretrained::open(Some(&unfinished), &device)?;
    let psnr = reconstructions(&trained, &place, args)?;
    samples(&trained, &place.at("samples.png"), args)?;
    std::fs::rename(&unfinished, place.bundle())?;
    super::print(&farewell(&place, psnr, begin.elapsed().as_secs_f64()))
}

/// The hint of an interrupted stage: continue with the demo's command, not with the stage's own.
fn again(error: Error) -> Error {
    if !error::is_interrupted(&error) {
        return error;
    }
    let words = std::env::args_os().map(|word| shell::word(&word.to_string_lossy()));
    let command: Vec<String> = words.collect();
    let hint = format!("continue with the same command: {}", command.join(" "));
    interrupted(format!("{error:#}"), hint)
}

/// A stage from scratch, or from where an interrupted demo left it.
fn request(
    place: &Place,
    stage: &str,
    args: &Args,
    config: &Config,
    device: &Device,
    threads: usize,
) -> Result<Request> {
    let (path, seed) = (place.at(stage), args.seed);
    // A run without a checkpoint cannot be continued: it starts from scratch.
    let begun = RunFolder::open(&path)
        .ok()
        .filter(|run| run.latest().is_ok());
    let mut config = config.clone();
    if let Some(run) = &begun {
        let info = run.info()?;
        if info.seed != seed {
            return Err(usage(
                format!("{} was started with seed {}", path.display(), info.seed),
                format!(
                    "continue with --seed {}, or choose another --out",
                    info.seed
                ),
            ));
        }
        config = resumed_config(&Config::read(&run.config())?, &config)?;
    }
    Ok(Request {
        config,
        world: World::alone(),
        seed,
        device: device.clone(),
        resume: begun.is_some().then(|| path.clone()),
        out: begun.is_none().then_some(path),
        fall_back: false,
        workers: threads,
        skip_bad: false,
        tensorboard: false,
        scale: args.scale.scale,
        watchdog: None,
        save_patience: Duration::ZERO,
    })
}

/// `drawings/train` and `drawings/val`, one sub-folder per class: an image folder like any other.
fn draw_pictures(place: &Place, seed: u64) -> Result<()> {
    let folder = place.at("drawings");
    if folder.exists() {
        return Ok(());
    }
    let mut progress = Progress::new("draw", (TRAIN + VAL) as u64, 0);
    atomic::write_folder(&folder, |folder| {
        // A different seed, so that the validation drawings are not the first training drawings.
        for (part, seed, count) in [("val", !seed, VAL), ("train", seed, TRAIN)] {
            for name in NAMES {
                std::fs::create_dir_all(folder.join(part).join(name))?;
            }
            let shapes = Shapes::new(seed, count);
            (0..count).into_par_iter().try_for_each(|i| {
                let example = shapes.read(i)?;
                let path = folder.join(part).join(format!("{}.png", example.key));
                std::fs::write(&path, png(&example.image)?)
                    .with_context(|| format!("cannot write {}", path.display()))
            })?;
            progress.set(count as u64, "");
        }
        Ok(())
    })
}

/// One row per class: pairs of a held-out drawing and its reconstruction. Returns their mean PSNR.
fn reconstructions(trained: &Pretrained, place: &Place, args: &Args) -> Result<f64> {
    let folder = place.at("drawings/val").display().to_string();
    let (source, size) = (open(&[folder], false)?, trained.config.data.image_size);
    let tokenizer = &trained.tokenizer;
    let (mut sheet, mut psnr) = (Vec::new(), 0.0);
    // The folder is sorted by class.
    let a_class = source.len() / NAMES.len();
    for class in 0..NAMES.len() {
        let numbers: Vec<u64> = (0..PAIRS).map(|i| (class * a_class + i) as u64).collect();
        let originals = numbers
            .iter()
            .map(|n| Ok(augment::center_crop(&source.read(*n as usize)?.image, size)))
            .collect::<Result<Vec<_>>>()?;
        let v = tokenizer.encode(&crate::sample::from_rgb(&originals, &trained.device)?)?;
        let noise = Noise::Drawn {
            seed: args.seed,
            indices: &numbers,
        };
        let sums = tokenizer.quantizer.quantize(&v, &noise)?.sums;
        let images = named_rgb(
            &decode(tokenizer, &sums.get(tokenizer.quantizer.steps())?)?,
            |i| format!("drawing {}", numbers[i]),
        )?;
        for (original, image) in originals.into_iter().zip(images) {
            psnr += crate::metrics::psnr(&original, &image) / (NAMES.len() * PAIRS) as f64;
            sheet.extend([original, image]);
        }
    }
    let sheet = grid(&sheet, 2 * PAIRS, args.scale.scale)?;
    save_png(&sheet, &place.at("reconstructions.png"))?;
    Ok(psnr)
}

/// One row per class, sorted by name.
fn samples(trained: &Pretrained, path: &Path, args: &Args) -> Result<()> {
    let sampler = trained.sampler()?;
    let options = SampleOptions::from(&trained.config.sample);
    let classes = trained.classes.len();
    let mut progress = Progress::new("sample", (classes * SAMPLES) as u64, 0);
    let mut sheet = Vec::new();
    for class in 0..classes {
        // The image numbers that `rdpm sample --class all` gives this class.
        let indices: Vec<u64> = (0..SAMPLES).map(|i| (i * classes + class) as u64).collect();
        let draws = Draws::Seeded {
            seed: args.seed,
            indices: &indices,
        };
        let labels = vec![class as u32; SAMPLES];
        let images = sampler.images(&labels, &draws, &options)?;
        sheet.extend(named_rgb(&images, |i| format!("image {}", indices[i]))?);
        progress.set(sheet.len() as u64, "");
    }
    save_png(&grid(&sheet, SAMPLES, args.scale.scale)?, path)
}

/// The losses of both stages, read from their metrics logs.
fn panels(vae: &Path, generator: &Path) -> Result<[Panel; 2]> {
    let read = |run: &Path| MetricsLog::read(&run.join("metrics.jsonl"));
    let (vae, generator) = (read(vae)?, read(generator)?);
    let curve = |lines: &[serde_json::Map<String, Value>],
                 name: &str,
                 pick: &dyn Fn(&Value) -> Option<f64>,
                 key: &str| Curve {
        name: name.to_string(),
        points: lines
            .iter()
            .filter_map(|line| Some((line.get("step")?.as_f64()?, pick(line.get(key)?)?)))
            .collect(),
    };
    let at = |t: usize| move |value: &Value| value.get(t - 1)?.as_f64();
    let steps = generator
        .first()
        .and_then(|line| Some(line.get("loss_t")?.as_array()?.len()))
        .unwrap_or(1);
    let of_steps = [1, steps.div_ceil(2), steps]
        .map(|t| curve(&generator, &format!("t = {t}"), &at(t), "loss_t"));
    Ok([
        Panel {
            title: "Tokenizer".into(),
            log: true,
            curves: vec![
                curve(&vae, "mean squared error", &Value::as_f64, "mse"),
                curve(&vae, "quantization loss", &Value::as_f64, "quant"),
            ],
        },
        Panel {
            title: "Generator: cross-entropy".into(),
            log: false,
            curves: [curve(&generator, "mean", &Value::as_f64, "loss")]
                .into_iter()
                .chain(of_steps)
                .collect(),
        },
    ])
}

/// What the demo made and which commands to try next, with this program's own name.
fn farewell(place: &Place, psnr: f64, seconds: f64) -> String {
    let own = std::env::args_os().next();
    let rdpm = own.map_or("rdpm".into(), |own| own.to_string_lossy().into_owned());
    let (folder, bundle) = (place.0.display(), place.bundle().display().to_string());
    format!(
        "\
{folder}/samples.png          a row a class
{folder}/reconstructions.png  drawings and their reconstructions, PSNR {psnr:.1} dB
{folder}/curves.png           losses of both stages
{bundle}     tokenizer and generator
({seconds:.0} s)

Next:
  {rdpm} sample --model {bundle} --class star --out stars.png
  {rdpm} sample --model {bundle} --class all --num 10 --show-steps --out steps.png
  {rdpm} reconstruct {folder}/drawings/val --model {bundle}
  {rdpm} encode {folder}/drawings/val --model {bundle} --out codes.safetensors
  {rdpm} decode codes.safetensors --model {bundle}
  {rdpm} inspect {bundle}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_demo_names_its_own_command() {
        let stage = interrupted("interrupted after step 3", "continue with: rdpm train-vae");
        let (text, code) = error::report(&again(stage));
        let own = std::env::args().next().unwrap_or_default();
        assert!(text.contains(&format!("same command: {own}")), "{text}");
        assert!(
            text.starts_with("error: interrupted after step 3"),
            "{text}"
        );
        assert!(!text.contains("train-vae") && code == 130, "{text}");
        let (text, _) = error::report(&again(hinted("the disk is full", "make room")));
        assert!(text.contains("hint: make room"), "{text}");
    }
}
