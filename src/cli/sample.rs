//! `rdpm sample`: images of given classes from a trained generator (Algorithm 2).

use std::path::PathBuf;
use std::time::Instant;

use image::RgbImage;
use serde_json::json;

use super::{Context, ScaleArgs};
use crate::config::{CfgSchedule, SampleConfig, is_temperature};
use crate::data::Classes;
use crate::error::{Error, Result, usage};
use crate::metrics::probe::Probe;
use crate::metrics::probe::reject::Rejection;
use crate::metrics::weights::{self, Network};
use crate::metrics::{Inception, Output as InceptionOutput};
use crate::sample::{
    Draws, Impossible, LatentDecoder, Output, Picture, Pictures, Pretrained, SampleOptions, Wishes,
};
use crate::telemetry::{Progress, shell};

/// Without --num: at least this many images, the same number for every class.
const SHEET: usize = 16;
/// The longest row of a sheet that has one row per class.
const LONGEST_ROW: usize = 20;

/// Sample images of given classes
///
/// On a CPU, the same seed gives the same images for any batch size and number of threads. Image i
/// is of the i-th class of --class, cycling: 0, 1, 2, 0, 1, 2, … Labels in the output (file names
/// in a folder, `arr_1` of an .npz) are the classes' indices in the model, from 0.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A run folder of train-gen, a bundle, a folder of `export --hf`, hf://owner/repo[@revision],
    /// or `builtin`, the built-in model [default: $RDPM_MODEL, else the newest finished run under
    /// runs/, else builtin]
    #[arg(long, value_name = "RUN|BUNDLE")]
    model: Option<PathBuf>,
    /// What to sample: a class's name, wnid, one of its words, or number (ImageNet's if all classes
    /// are wnids, else the class's index); index:N is always the index; a comma-separated list of
    /// these; or all
    #[arg(long, value_name = "CLASS")]
    class: Option<String>,
    /// Total number of images, spread over the classes, 10 million at most [default: 16, or the
    /// next multiple of the number of classes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    num: Option<u32>,
    /// A sheet (.png), a folder of PNGs named indexCLASS-NUMBER.png (any other name), or ADM's
    /// array file (.npz)
    #[arg(long, value_name = "PATH", default_value = "samples.png")]
    out: PathBuf,
    /// Seed of all random numbers
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Images per batch [default: the model's sample.batch_size]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: Option<u32>,
    /// Write each image as a strip: the decoded sum after every step
    #[arg(long)]
    show_steps: bool,
    /// Print a summary as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    scale: ScaleArgs,
    #[command(flatten)]
    drawing: DrawingArgs,
    #[command(flatten)]
    rejection: RejectionArgs,
}

/// The paper's rejection sampling, off by default.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Rejection")]
struct RejectionArgs {
    /// Draw N candidates for every image and keep the one that --probe finds most likely to show
    /// its class
    #[arg(long, value_name = "N", requires = "probe",
          value_parser = clap::value_parser!(u32).range(2..))]
    reject: Option<u32>,
    /// A probe of `rdpm fit-probe`, for --reject
    #[arg(long, value_name = "FILE", requires = "reject")]
    probe: Option<PathBuf>,
    /// Inception's weights, for --reject: a file, an address, or hf://owner/repo/file [default:
    /// from the cache folder]
    #[arg(long, value_name = "FILE|URL", requires = "reject")]
    weights: Option<String>,
    /// Download missing weights from their authors' site
    #[arg(long, requires = "reject")]
    download: bool,
}

impl RejectionArgs {
    /// None without --reject.
    ///
    /// Errors: no weights; a probe of other features, or without one of the classes in `used`.
    fn open(&self, model: &Pretrained, used: &[u32]) -> Result<Option<Rejection>> {
        let Some((candidates, path)) = self.reject.zip(self.probe.as_deref()) else {
            return Ok(None);
        };
        let probe = Probe::read(path)?;
        let size = model.config.data.image_size as u32;
        if let Some(doubt) = probe.doubt_of_size((size, size)) {
            tracing::warn!("{doubt}");
        }
        let weights = self.weights.as_deref();
        let weights = weights::locate(Network::Inception, weights, self.download)?;
        let outputs = [InceptionOutput::Pool2048];
        let network = Inception::open(&weights, &outputs, probe.preprocess()?, &model.device)?;
        let (network, candidates) = (Box::new(network), candidates as usize);
        Rejection::new(network, probe, &model.classes, used, candidates).map(Some)
    }
}

/// How codes are drawn; an option that is left out keeps the model's setting.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Drawing")]
pub struct DrawingArgs {
    /// Guidance: the paper's λ. 0 is off; DiT's and LlamaGen's scale is 1 + λ
    #[arg(long, value_name = "λ", allow_negative_numbers = true)]
    cfg: Option<f64>,
    /// How λ changes over the steps: constant, or rising linearly from 0 at the first step to λ at
    /// the last
    #[arg(long, value_enum)]
    cfg_schedule: Option<CfgSchedule>,
    /// Divides the logits: below 1 is less random, above 1 more
    #[arg(
        long,
        value_name = "X",
        conflicts_with = "tau",
        allow_negative_numbers = true
    )]
    temperature: Option<f64>,
    /// The paper's τ = 1 / temperature
    #[arg(long, value_name = "τ", allow_negative_numbers = true)]
    tau: Option<f64>,
    /// Sample codes (Gumbel noise) …
    #[arg(long, overrides_with = "no_gumbel")]
    gumbel: bool,
    /// … or always take the most likely code
    #[arg(long)]
    no_gumbel: bool,
    /// Sample from the K most likely codes only
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Sample from the smallest set of most likely codes whose probabilities sum to P
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f64>,
}

impl DrawingArgs {
    /// The first drawing option that was given, if any.
    pub fn given(&self) -> Option<&'static str> {
        let all = [
            ("--cfg", self.cfg.is_some()),
            ("--cfg-schedule", self.cfg_schedule.is_some()),
            ("--temperature", self.temperature.is_some()),
            ("--tau", self.tau.is_some()),
            ("--gumbel", self.gumbel),
            ("--no-gumbel", self.no_gumbel),
            ("--top-k", self.top_k.is_some()),
            ("--top-p", self.top_p.is_some()),
        ];
        all.iter().find(|(_, given)| *given).map(|(flag, _)| *flag)
    }

    /// The model's settings, overridden by these. Order: guidance, temperature, top-k, top-p,
    /// Gumbel.
    ///
    /// Errors: a value out of range; an option that has no meaning without Gumbel noise.
    pub fn options(&self, model: &SampleConfig) -> Result<SampleOptions> {
        let reciprocal = match self.tau {
            Some(tau) if !is_temperature(tau) => return Err(out_of_range("--tau", tau, "above 0")),
            tau => tau.map(|tau| 1.0 / tau),
        };
        let wishes = Wishes {
            cfg: self.cfg,
            cfg_schedule: self.cfg_schedule,
            temperature: self.temperature.or(reciprocal),
            gumbel: match (self.gumbel, self.no_gumbel) {
                (true, _) => Some(true),
                (false, true) => Some(false),
                (false, false) => None,
            },
            top_k: self.top_k,
            top_p: self.top_p,
        };
        let flag = |name: &str| match name {
            "temperature" if self.tau.is_some() => "--tau".to_string(),
            name => format!("--{}", name.replace('_', "-")),
        };
        wishes.over(model).map_err(|impossible| match impossible {
            Impossible::OutOfRange {
                name,
                value,
                allowed,
            } => out_of_range(&flag(name), value, allowed),
            Impossible::WithoutGumbel { name } => {
                let flag = flag(name);
                usage(
                    format!(
                        "{flag} has no meaning without Gumbel noise: the most likely code is taken"
                    ),
                    format!("leave out {flag}, or draw with --gumbel"),
                )
            }
        })
    }
}

fn out_of_range(flag: &str, value: f64, allowed: &str) -> Error {
    usage(
        format!("{flag} {}: out of range", shell::number(value)),
        format!("allowed: {allowed}"),
    )
}

/// Which images to make: image i is of class `classes[i % classes.len()]`.
#[derive(Debug, PartialEq)]
struct SampleSheet {
    classes: Vec<u32>,
    count: usize,
    /// Image numbers in the order in which they are made and written.
    numbers: Vec<u64>,
    /// Images per row of a sheet.
    columns: usize,
}

impl SampleSheet {
    /// On a sheet of several classes each row is a class; elsewhere classes alternate.
    fn new(classes: Vec<u32>, asked: Option<u32>, output: &Output) -> Self {
        let c = classes.len();
        let count = asked.map_or(SHEET.next_multiple_of(c), |n| n as usize);
        let a_class = count.div_ceil(c);
        let mut numbers: Vec<u64> = (0..count as u64).collect();
        let by_row = matches!(output, Output::Grid(..))
            && c > 1
            && (2..=LONGEST_ROW).contains(&a_class)
            && count.is_multiple_of(c);
        if by_row {
            numbers.sort_by_key(|n| n % c as u64);
        }
        let columns = if by_row {
            a_class
        } else {
            (count as f64).sqrt().ceil() as usize
        };
        Self {
            classes,
            count,
            numbers,
            columns,
        }
    }

    fn label(&self, number: u64) -> u32 {
        self.classes[(number % self.classes.len() as u64) as usize]
    }
}

impl Args {
    fn classes(&self, known: &Classes) -> Result<Vec<u32>> {
        match &self.class {
            Some(class) => known.resolve(class),
            // A model trained without labels has a single class.
            None if known.is_empty() => Ok(vec![0]),
            None => Err(usage(
                format!("--class is missing: the model has {} classes", known.len()),
                "--class takes a name, a number, a list of them, or all",
            )),
        }
    }
}

pub fn run(args: &Args, context: &Context) -> Result<()> {
    let output = Output::from_path(&args.out, args.scale.scale)?;
    if args.show_steps && matches!(output, Output::Npz(_)) {
        return Err(usage(
            "--show-steps makes strips, which an .npz cannot hold",
            "name a .png or a folder with --out",
        ));
    }
    let model = Pretrained::open(args.model.as_deref(), &context.device()?)?;
    // User errors are reported before weights are uploaded to a GPU.
    let options = args.drawing.options(&model.config.sample)?;
    let plan = SampleSheet::new(args.classes(&model.classes)?, args.num, &output);
    let rejection = args.rejection.open(&model, &plan.classes)?;
    let sampler = model.sampler()?;
    let decoder = LatentDecoder::new(&model.tokenizer);
    if !matches!(output, Output::Grid(..)) {
        say_indices(&plan.classes, &model.classes);
    }
    let columns = if args.show_steps { 1 } else { plan.columns };
    let batch = args
        .batch_size
        .map_or(model.config.sample.batch_size, |b| b as usize);
    let (side, begin) = (model.config.data.image_size, Instant::now());
    let mut progress = Progress::new("sample", plan.count as u64, 0);
    // The mean probability of what rejection keeps.
    let mut kept = 0.0;
    let pictures = Pictures {
        count: plan.count,
        width: side,
        height: side,
        columns,
        beside: if args.show_steps {
            model.config.quantizer.steps
        } else {
            1
        },
    };
    // The decoded sum after every step, or after the last.
    let draw = |numbers: &[u64], labels: &[u32]| -> Result<Vec<Vec<RgbImage>>> {
        let draws = Draws::Seeded {
            seed: args.seed,
            indices: numbers,
        };
        let shown = match args.show_steps {
            true => sampler.latents(labels, &draws, &options)?,
            false => vec![sampler.latent(labels, &draws, &options)?],
        };
        let decoded = shown.iter().map(|z| {
            let name = |i: usize| format!("image {} (class {})", numbers[i], labels[i]);
            decoder.images(z, name)
        });
        decoded.collect()
    };
    let candidates = rejection.as_ref().map_or(1, Rejection::candidates);
    output.write(pictures, |put| {
        for numbers in plan.numbers.chunks((batch / candidates).max(1)) {
            let of = |number: &u64| match &rejection {
                Some(rejection) => rejection.numbers(*number),
                None => *number..*number + 1,
            };
            let drawn: Vec<u64> = numbers.iter().flat_map(of).collect();
            let of = |number: &u64| vec![plan.label(*number); candidates];
            let labels: Vec<u32> = numbers.iter().flat_map(of).collect();
            let mut steps: Vec<Vec<RgbImage>> = Vec::new();
            for (numbers, labels) in drawn.chunks(batch).zip(labels.chunks(batch)) {
                let more = draw(numbers, labels)?;
                steps.resize_with(more.len(), Vec::new);
                let parts = steps.iter_mut().zip(more);
                parts.for_each(|(images, more)| images.extend(more));
            }
            for (i, number) in numbers.iter().enumerate() {
                let (first, label) = (i * candidates, plan.label(*number));
                let chosen = match (&rejection, steps.last()) {
                    (Some(rejection), Some(images)) => {
                        let best = rejection.best(&images[first..first + candidates], label)?;
                        kept += f64::from(best.probability) / plan.count as f64;
                        first + best.place
                    }
                    _ => first,
                };
                put(Picture {
                    images: steps.iter().map(|images| images[chosen].clone()).collect(),
                    label,
                    number: *number,
                })?;
                progress.advance();
            }
        }
        Ok(())
    })?;
    drop(progress);
    let seconds = begin.elapsed().as_secs_f64();
    super::print(&if args.json {
        let mut line = json!({
            "out": args.out,
            "model": model.path,
            "images": plan.count,
            "classes": plan.classes,
            "names": names(&plan.classes, &model.classes),
            "seed": args.seed,
            "seconds": seconds,
        });
        if rejection.is_some() {
            line["candidates"] = json!(candidates);
            line["probability"] = json!(kept);
        }
        format!("{line}\n")
    } else {
        format!("{}\n", args.out.display())
    })
}

/// The classes' names in the data.
fn names<'a>(chosen: &[u32], known: &'a Classes) -> Vec<Option<&'a str>> {
    let name = |index: &u32| Some(known.get(*index)?.wnid.as_str());
    chosen.iter().map(name).collect()
}

/// Logs which class each label of the output is.
fn say_indices(chosen: &[u32], known: &Classes) {
    let mut distinct: Vec<u32> = chosen.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    let names = names(&distinct, known);
    let named = distinct.iter().zip(names).filter_map(|(index, name)| {
        let name = name.filter(|name| *name != index.to_string())?;
        Some(format!("{index} = {name}"))
    });
    let named: Vec<String> = named.collect();
    if let Some(first) = named
        .get(..8.min(named.len()))
        .filter(|first| !first.is_empty())
    {
        let more = if named.len() > 8 { ", ..." } else { "" };
        tracing::info!("labels are the model's indices: {}{more}", first.join(", "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::report;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: DrawingArgs,
    }

    fn options(line: &str) -> Result<SampleOptions> {
        let words = ["rdpm"].into_iter().chain(line.split_whitespace());
        Line::parse_from(words)
            .args
            .options(&SampleConfig::default())
    }

    #[test]
    fn what_is_left_out_is_the_models_own() -> Result<()> {
        let own = SampleOptions::from(&SampleConfig::default());
        assert_eq!(options("")?, own);
        assert_eq!(options("--no-gumbel --gumbel")?, own);
        let asked = options("--cfg 0 --cfg-schedule constant --tau 2 --top-k 5 --top-p 0.9")?;
        assert_eq!(
            asked,
            SampleOptions {
                cfg: 0.0,
                cfg_schedule: CfgSchedule::Constant,
                temperature: 0.5,
                gumbel: true,
                top_k: Some(5),
                top_p: Some(0.9),
            }
        );
        Ok(())
    }

    #[test]
    fn what_has_no_meaning_is_a_usage_error() {
        for line in [
            "--no-gumbel --top-k 5",
            "--no-gumbel --top-p 0.5",
            "--no-gumbel --temperature 0.5",
            "--no-gumbel --tau 2",
            "--cfg=-1",
            "--cfg NaN",
            "--cfg 1e300",
            "--temperature 0",
            "--tau inf",
            "--top-k 0",
            "--top-p 1.5",
        ] {
            let (text, code) = report(&options(line).expect_err(line));
            assert_eq!(code, 2, "{line}: {text}");
        }
        let (text, _) = report(&options("--cfg 1e300").expect_err("too large"));
        assert!(text.contains("--cfg 1e300: out of range"), "{text}");
        let both = ["rdpm", "--tau", "1", "--temperature", "1"];
        assert!(Line::try_parse_from(both).is_err());
    }

    #[test]
    fn a_sheet_has_a_row_a_class_and_files_alternate() {
        let sheet = Output::Grid("a.png".into(), Default::default());
        let plan = SampleSheet::new(vec![7, 3], Some(6), &sheet);
        assert_eq!(
            (plan.columns, &plan.numbers[..]),
            (3, &[0, 2, 4, 1, 3, 5][..])
        );
        assert_eq!(
            plan.numbers
                .iter()
                .map(|n| plan.label(*n))
                .collect::<Vec<_>>(),
            [7, 7, 7, 3, 3, 3]
        );
        let file = SampleSheet::new(vec![7, 3], Some(5), &Output::Npz("a.npz".into()));
        assert_eq!(
            file.numbers
                .iter()
                .map(|n| file.label(*n))
                .collect::<Vec<_>>(),
            [7, 3, 7, 3, 7]
        );
        assert_eq!(SampleSheet::new(vec![1], None, &sheet).columns, 4);
        assert_eq!(SampleSheet::new((0..10).collect(), None, &sheet).count, 20);
        assert_eq!(
            SampleSheet::new((0..1000).collect(), None, &sheet).columns,
            32
        );
    }
}
