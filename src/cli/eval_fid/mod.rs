//! `rdpm eval-fid`: how good samples are, by the metrics that papers report.

mod collect;
mod sides;
mod sweep;

use std::path::PathBuf;

use candle_core::Device;

use super::Context;
use super::part::Part;
use super::sample::DrawingArgs;
use crate::data::printed;
use crate::error::{self, Result, usage};
use crate::metrics::clip::Clip;
use crate::metrics::dinov2::DinoV2;
use crate::metrics::evaluate::Evaluator;
use crate::metrics::known;
use crate::metrics::options::{KID_SUBSETS, Metric, Options};
use crate::metrics::probe::Probe;
use crate::metrics::report::{Evaluation, Report};
use crate::metrics::requirements::Facts;
use crate::metrics::side::Side;
use crate::metrics::statistics::Groups;
use crate::metrics::stats_file::{MadeBy, Statistics};
use crate::metrics::weights::{self, Network};
use crate::metrics::{Arithmetic, FeatureNetwork, Inception, Output, Preprocess};
use crate::sample::save_png;
use crate::store::atomic;
use crate::world::{Work, World};
use sides::{Opened, Setting};
use sweep::Sweep;

/// Computed if --metrics is left out, as far as the two sides have what each metric needs.
const DEFAULT: [Metric; 4] = [Metric::Fid, Metric::Sfid, Metric::Is, Metric::Pr];

/// Compute FID and related metrics of samples against a reference
///
/// The metrics are those of the ADM evaluator; with --preprocess pytorch-fid or clean, FID is that
/// of pytorch-fid or clean-fid. Samples and reference are folders, tar shards, .npz of images, or
/// statistics (.npz); samples may also be a run or a bundle, which is then sampled.
///
/// Several processes of a launcher (see `rdpm launch`) divide the batches; the report is the same.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A folder, a shard, an .npz, or a run or bundle to sample from
    #[arg(long, value_name = "PATH")]
    samples: PathBuf,
    /// A folder, a shard, an .npz of images or of statistics (ADM's, pytorch-fid's)
    #[arg(long, value_name = "PATH", required_unless_present_any = ["save_stats", "probe"])]
    reference: Option<PathBuf>,
    /// Metrics to compute, separated by commas [default: fid,sfid,is,pr, as far as weights and
    /// inputs allow]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "METRICS")]
    metrics: Vec<Metric>,
    /// Dimensions of FID's features: 64, 192, 768 or 2048
    #[arg(long, default_value_t = 2048, value_name = "D", value_parser = dims)]
    dims: usize,
    /// How images are resized for the network [default: adm]
    #[arg(long, value_enum)]
    preprocess: Option<Preprocess>,
    /// Center-crop every image of folders and shards and resize it to SIZE as ADM does
    #[arg(long, value_name = "SIZE", value_parser = clap::value_parser!(u32).range(1..))]
    crop: Option<u32>,
    /// Also judge with this probe (of `rdpm fit-probe`) how many samples show their class
    #[arg(long, value_name = "FILE")]
    probe: Option<PathBuf>,
    /// A 95 % confidence interval for Fréchet distances, by the delete-a-group jackknife
    #[arg(long)]
    interval: bool,
    /// Write the report to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Plot a sweep: FID and IS against the setting that was varied
    #[arg(long, value_name = "FILE.png", requires = "sweep")]
    plot: Option<PathBuf>,
    /// Only compute the features of a model's samples of the batches I, I+N, I+2N, …, and keep them
    /// in --work, so that N processes that nothing connects share the samples; the same command
    /// without --part then takes them all. I counts from 0
    #[arg(long, value_name = "I/N")]
    pub(super) part: Option<Part>,
    /// Images per batch; results do not depend on it
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    #[command(flatten)]
    networks: NetworkArgs,
    #[command(flatten)]
    details: DetailArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    drawing: DrawingArgs,
}

#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Weights")]
struct NetworkArgs {
    /// Inception's weights: a file, an address, or hf://owner/repo/file [default: from the cache
    /// folder]
    #[arg(long, value_name = "FILE|URL")]
    weights: Option<String>,
    /// DINOv2's weights (ViT-L/14), for fd-dinov2
    #[arg(long, value_name = "FILE|URL")]
    dinov2_weights: Option<String>,
    /// CLIP's weights (ViT-B/32), for clip-fid
    #[arg(long, value_name = "FILE|URL")]
    clip_weights: Option<String>,
    /// Download missing weights from their authors' sites
    #[arg(long)]
    download: bool,
}

#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Details")]
struct DetailArgs {
    /// Write the samples' statistics: mu and sigma, and, where available, ADM's mu_s, sigma_s and
    /// images
    #[arg(long, value_name = "FILE.npz")]
    save_stats: Option<PathBuf>,
    /// Write the samples' features, one array per kind
    #[arg(long, value_name = "FILE.npz")]
    save_features: Option<PathBuf>,
    /// Compute the distances of precision and recall in f16, as ADM's evaluator does on a GPU
    #[arg(long)]
    adm_fp16_distances: bool,
    /// Number of KID subsets
    #[arg(long, value_name = "N", default_value_t = KID_SUBSETS as u32, value_parser = clap::value_parser!(u32).range(1..))]
    kid_subsets: u32,
    /// Images per KID subset [default: 1000, or all there are]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    kid_subset_size: Option<u32>,
}

/// These apply only if samples are drawn from a model.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Sampling")]
pub(super) struct SamplingArgs {
    /// Number of samples to draw, spread over the classes [default: 50000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    num: Option<u32>,
    /// Classes to sample, as in `rdpm sample` [default: all]
    #[arg(long, value_name = "CLASS")]
    class: Option<String>,
    /// Seed of the samples and of metrics that draw at random
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Evaluate several values of one setting: cfg=0,1,2 or temperature=…, top-k=…, top-p=…
    #[arg(long, value_name = "KEY=VALUES")]
    sweep: Option<Sweep>,
    /// Keep features in this folder: an interrupted command, or another command on the same
    /// samples, continues from them [default: runs/eval-fid-…, named after what is sampled]
    #[arg(long, value_name = "FOLDER")]
    work: Option<PathBuf>,
}

fn dims(text: &str) -> std::result::Result<usize, String> {
    let dims = text.parse().ok().filter(|&d| Output::of_dims(d).is_some());
    dims.ok_or_else(|| "expected 64, 192, 768 or 2048".into())
}

const WORK: Work = Work {
    unit: "batch",
    remedy: "the features of samples of a model are kept: start all ranks again",
};

pub fn run(args: &Args, context: &Context) -> Result<()> {
    context.share(args.part.is_some(), WORK, |context, world| {
        evaluate(args, context, world)
    })
}

fn evaluate(args: &Args, context: &Context, world: &World) -> Result<()> {
    // All checks come before any computation.
    let outputs = [
        &args.json,
        &args.plot,
        &args.details.save_stats,
        &args.details.save_features,
    ];
    if world.is_first() && args.part.is_none() {
        for path in outputs.into_iter().flatten() {
            atomic::check_writable(path)?;
        }
    }
    known::check()?;
    let crop = args.crop.map(|c| c as usize);
    let device = context.device()?;
    let reference = match &args.reference {
        Some(path) => Some(sides::open(path, crop)?),
        None => None,
    };
    let probe = args.probe.as_deref().map(Probe::read).transpose()?;
    let settings = sides::settings(args, crop, &device)?;
    if let Some(probe) = &probe {
        settings[0].check_classes(probe)?;
    }
    let facts = settings[0].facts();
    let reference_facts = reference.as_ref().map(Opened::facts);
    let (options, networks) = prepare(args, facts, reference_facts, &device)?;
    let compared = [options.fid.name(), Output::Spatial.name()];
    if args.preprocess.is_none()
        && compared.iter().any(|tap| options.compares(tap))
        && let Some(reference) = reference_facts
    {
        facts.check_says_resize()?;
        reference.check_says_resize()?;
    }
    options.check(&networks, facts, reference_facts)?;
    if let Some(probe) = &probe
        && let Some(place) = collect::place_of_inception(&networks)
    {
        probe.check(&*networks[place])?;
    }
    let needs_features = args.details.save_features.is_some();
    if needs_features && facts.images.is_none() {
        return Err(usage(
            format!("--save-features: {} holds statistics alone", facts.path),
            "name a set of images with --samples",
        ));
    }

    if let Some(part) = args.part {
        for setting in &settings {
            let (place, count) = setting.collect_part(part, &networks)?;
            super::print(&format!(
                "{}: the features of {count} samples\n",
                printed(place.as_os_str())
            ))?;
        }
        return Ok(());
    }
    if world.size() > 1 {
        let mut facts: Vec<_> = settings.iter().flat_map(Setting::same).collect();
        facts.extend(reference.iter().flat_map(|side| side.same("reference")));
        facts.extend(networks.iter().map(|network| {
            let taps: Vec<_> = network.taps().iter().map(|tap| tap.name).collect();
            let (weights, preprocess) = (network.weights_hash(), network.preprocess());
            let what = format!("the outputs of {}", network.name());
            (
                what,
                format!("{taps:?}, by weights {weights} and resize {preprocess}"),
            )
        }));
        world.same(&facts)?;
    }
    let logs = settings.iter().map(|setting| match world.is_first() {
        true => setting.log(&networks),
        false => Ok(None),
    });
    let logs = logs.collect::<Result<Vec<_>>>()?;

    let shared = (args.batch_size as usize, world);
    let mut of_reference = None;
    if let Some(opened) = &reference {
        let needs_images = options.needs_reference_images();
        let keep = |tap: &str| options.keeps_reference_rows(tap);
        let groups = Groups::ONE;
        of_reference =
            opened.collect("reference", &networks, groups, &keep, needs_images, shared)?;
    }
    let mut evaluations = Vec::new();
    let mut evaluator = of_reference
        .as_ref()
        .map(|r| Evaluator::new(&options, &networks, r));
    let mut saved = None;
    for (setting, log) in settings.iter().zip(logs) {
        let keep = |tap: &str| options.keeps_sample_rows(tap) || needs_features;
        let needs_images = options.needs_sample_images() || needs_features;
        let groups = options.groups();
        let side = setting.collect(log, groups, &networks, &keep, needs_images, shared)?;
        // Rank 0 has it, and evaluates.
        let Some(side) = side else {
            continue;
        };
        let mut evaluation = match &mut evaluator {
            Some(evaluator) => evaluator.evaluate(&side)?,
            None => Evaluation {
                samples: side.set.clone(),
                ..Evaluation::default()
            },
        };
        if let Some(probe) = &probe {
            probe.measure(&side, &networks, &mut evaluation)?;
        }
        evaluations.push(evaluation);
        if args.details.save_stats.is_some() || needs_features {
            saved = Some((setting, side));
        }
    }
    if !world.is_first() {
        return Ok(());
    }
    let report = Report {
        reference: of_reference.as_ref().map(|r| r.set.clone()),
        seed: args.sampling.seed,
        evaluations,
    };
    // Printed before files are written, so that the result is not lost if the disk fails.
    super::print(&report.table())?;
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report.json())?;
        atomic::write_file(path, text.as_bytes())?;
    }
    if let (Some(path), Some(sweep)) = (&args.plot, &args.sampling.sweep) {
        save_png(&sweep.plot(&report.evaluations)?, path)?;
    }
    let Some((setting, side)) = saved else {
        return Ok(());
    };
    if let Some(path) = &args.details.save_stats {
        let statistics = statistics(&side, &networks, options.fid)?;
        // ADM's evaluator reads the images of files that have spatial statistics.
        let images = setting.images().filter(|_| statistics.spatial.is_some());
        statistics.write(path, images)?;
    }
    match &args.details.save_features {
        Some(path) => collect::save_features(path, &side, &networks),
        None => Ok(()),
    }
}

/// The metrics to compute, and the networks for them.
fn prepare(
    args: &Args,
    samples: Facts,
    reference: Option<Facts>,
    device: &Device,
) -> Result<(Options, Vec<Box<dyn FeatureNetwork>>)> {
    let find = |network, asked: &Option<String>| {
        weights::locate(network, asked.as_deref(), args.networks.download)
    };
    let mut options = Options {
        metrics: args.metrics.clone(),
        // The parser allows no other value.
        fid: Output::of_dims(args.dims).unwrap_or(Output::Pool2048),
        interval: args.interval,
        arithmetic: match args.details.adm_fp16_distances {
            true => Arithmetic::Half,
            false => Arithmetic::Exact,
        },
        kid_subsets: args.details.kid_subsets as usize,
        kid_subset_size: args.details.kid_subset_size.map(|n| n as usize),
        save_statistics: args.details.save_stats.is_some(),
        probe: args.probe.is_some(),
        seed: args.sampling.seed,
    };
    let saved = |metric: &Metric| matches!(metric, Metric::Fid | Metric::Sfid);
    if reference.is_none() && !options.metrics.iter().all(saved) {
        return Err(usage(
            "without --reference only statistics are saved: --metrics fid, or fid,sfid",
            "name a --reference, or leave out the other metrics",
        ));
    }
    // Nothing is compared and nothing saved: the probe alone judges.
    let alone = reference.is_none() && !options.save_statistics;
    if alone && !options.metrics.is_empty() {
        return Err(usage(
            "--metrics compare samples with a reference, and there is none",
            "name a --reference, or leave out --metrics: --probe needs neither",
        ));
    }
    let mut networks: Vec<Box<dyn FeatureNetwork>> = Vec::new();
    if options.metrics.is_empty() || !options.outputs().is_empty() {
        let path = find(Network::Inception, &args.networks.weights)?;
        let (tensors, hash) = weights::read_hashed(&path)?;
        if options.metrics.is_empty() && !alone {
            let sides = || [Some(samples), reference].into_iter().flatten();
            let spatial = |side: Facts| side.statistics.is_none_or(|s| s.spatial.is_some());
            let logits = tensors.contains_key("fc.weight");
            if samples.images.is_some() && reference.is_some() && !logits {
                tracing::warn!(
                    "no Inception Score: {} has no `fc.weight`; the published weights have it (--weights FILE|URL)",
                    path.display()
                );
            }
            let possible = |metric: &Metric| match metric {
                Metric::Is => samples.images.is_some() && logits,
                Metric::Pr => sides().all(|side| side.images.is_some()),
                Metric::Sfid => sides().all(spatial),
                _ => true,
            };
            let wanted = |metric: &Metric| reference.is_some() || saved(metric);
            let metrics = DEFAULT.into_iter().filter(wanted);
            options.metrics = metrics.filter(possible).collect();
        }
        let outputs = options.outputs();
        let preprocess = args.preprocess.unwrap_or_default();
        let inception = Inception::new(&tensors, 1, &outputs, preprocess, hash, device)
            .and_then(Inception::for_inference)
            .map_err(|e| e.context(path.display().to_string()))?;
        networks.push(Box::new(inception));
    }
    if options.wants(Metric::FdDinov2) {
        let path = find(Network::DinoV2, &args.networks.dinov2_weights)?;
        networks.push(Box::new(DinoV2::open(&path, device)?));
    }
    if options.wants(Metric::ClipFid) {
        let path = find(Network::Clip, &args.networks.clip_weights)?;
        networks.push(Box::new(Clip::open(&path, device)?));
    }
    Ok((options, networks))
}

/// What --save-stats writes for `side`.
fn statistics(
    side: &Side,
    networks: &[Box<dyn FeatureNetwork>],
    fid: Output,
) -> Result<Statistics> {
    // These statistics were not made by this evaluation.
    if let Some(known) = &side.statistics {
        return Ok(known.clone());
    }
    let place = error::Context::context(side.inception, "Inception was not loaded")?;
    let network = &networks[place];
    let spatial = Output::Spatial.name();
    let has_spatial = network.taps().iter().any(|tap| tap.name == spatial);
    Ok(Statistics {
        fid: side.gaussian(place, fid.name())?,
        spatial: match has_spatial {
            true => Some(side.gaussian(place, spatial)?),
            false => None,
        },
        made_by: Some(MadeBy {
            network: network.name().to_string(),
            weights: network.weights_hash().to_string(),
            preprocess: network.preprocess().to_string(),
            images: side.count(place).unwrap_or(0),
            size: side.set.size,
            version: env!("CARGO_PKG_VERSION").to_string(),
        }),
    })
}

/// Refuses options that only apply to samples drawn from a model.
fn only_for_models(args: &Args) -> Result<()> {
    let given = [
        ("--sweep", args.sampling.sweep.is_some()),
        ("--class", args.sampling.class.is_some()),
        ("--part", args.part.is_some()),
        ("--work", args.sampling.work.is_some()),
        ("--num", args.sampling.num.is_some()),
    ];
    let given = given.iter().find(|(_, given)| *given);
    match given.map(|(flag, _)| *flag).or(args.drawing.given()) {
        Some(flag) => Err(usage(
            format!(
                "{flag}: {} is no model to sample from",
                printed(args.samples.as_os_str())
            ),
            "name a run or a bundle with --samples",
        )),
        None => Ok(()),
    }
}
