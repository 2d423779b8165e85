//! `rdpm fit-probe`: a linear classifier on Inception's features, for `eval-fid --probe` and
//! `sample --reject`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use candle_core::Device;
use serde_json::json;

use super::Context;
use super::config::data_path;
use crate::data::{Classes, Source, open, open_numbered};
use crate::error::{Error, Result, usage};
use crate::interrupt::Interrupt;
use crate::metrics::collect::check_features;
use crate::metrics::probe::Probe;
use crate::metrics::probe::fit::{Settings, fit};
use crate::metrics::stats_file::MadeBy;
use crate::metrics::weights::{self, Network};
use crate::metrics::{FeatureNetwork, Images, Inception, Output, Preprocess, Rows};
use crate::store::atomic;
use crate::telemetry::Progress;

/// Fit a linear classifier on Inception's features: does an image show its class?
///
/// Softmax regression on the 2048 features of labelled images. `eval-fid --probe` says with it how
/// many samples show the class that was asked for, `sample --reject` keeps the best of several.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Labelled images to fit to: folders, tar shards, or globs of them in quotes
    #[arg(required = true, value_name = "DATA", value_parser = data_path())]
    data: Vec<String>,
    /// Labelled images of the same classes, to measure the probe on; may be given several times
    #[arg(long, value_name = "DATA", value_parser = data_path())]
    val: Vec<String>,
    /// The probe to write
    #[arg(long, value_name = "FILE", default_value = "probe.safetensors")]
    out: PathBuf,
    /// Center-crop every image and resize it to SIZE as ADM does
    #[arg(long, value_name = "SIZE", value_parser = clap::value_parser!(u32).range(1..))]
    crop: Option<u32>,
    /// How images are resized for Inception; the probe judges images resized in this way only
    #[arg(long, value_enum, default_value_t)]
    preprocess: Preprocess,
    /// Inception's weights: a file, an address, or hf://owner/repo/file [default: from the cache
    /// folder]
    #[arg(long, value_name = "FILE|URL")]
    weights: Option<String>,
    /// Download missing weights from their authors' site
    #[arg(long)]
    download: bool,
    /// Images per batch of Inception; results do not depend on it
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Passes over the features
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    epochs: u32,
    /// AdamW's, which falls along a cosine
    #[arg(long, default_value_t = 1e-3)]
    lr: f64,
    /// AdamW's, of the weights
    #[arg(long, default_value_t = 1e-2)]
    weight_decay: f64,
    /// Seed of the order of images
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print a summary as JSON
    #[arg(long)]
    json: bool,
}

/// Images per step of the fit.
const BATCH: usize = 1000;

pub fn run(args: &Args, context: &Context) -> Result<()> {
    atomic::check_writable(&args.out)?;
    for (flag, value, least) in [
        ("--lr", args.lr, f64::MIN_POSITIVE),
        ("--weight-decay", args.weight_decay, 0.0),
    ] {
        if !(value.is_finite() && value >= least) {
            return Err(usage(
                format!("{flag} {value}: out of range"),
                "it is a positive number",
            ));
        }
    }
    let train = open(&args.data, false)?;
    if train.classes().len() < 2 {
        return Err(usage(
            format!(
                "a probe tells classes apart, and the images have {}",
                train.classes().len()
            ),
            "name folders with a folder a class, or shards with labels",
        ));
    }
    train.warn_of_doubts();
    let classes = train.classes().clone();
    let val = match args.val.is_empty() {
        true => None,
        false => Some(open_numbered(&args.val, &classes, false)?),
    };
    let network = args.network(&context.device()?)?;
    let begin = Instant::now();
    let (rows, labels, size) = args.features("train", train, &network)?;
    let validation = match val {
        Some(val) => Some(args.features("val", val, &network)?),
        None => None,
    };
    let (features, begin) = (begin.elapsed().as_secs_f64(), Instant::now());
    let images = labels.len();
    let parameters = args.fit(rows, &labels, &classes)?;
    let made_by = MadeBy {
        network: network.name().to_string(),
        weights: network.weights_hash().to_string(),
        preprocess: network.preprocess().to_string(),
        images,
        size,
        version: env!("CARGO_PKG_VERSION").to_string(),
    };
    let mut probe = Probe::new(parameters, classes, made_by).map_err(Error::msg)?;
    let mut metrics = json!({
        "epochs": args.epochs, "lr": args.lr, "weight_decay": args.weight_decay, "seed": args.seed,
    });
    let verdict = match &validation {
        Some((rows, labels, _)) => Some((probe.judge(rows, labels)?, labels.len())),
        None => None,
    };
    if let Some((verdict, images)) = verdict {
        metrics["val"] =
            json!({"images": images, "top1": verdict.top1, "probability": verdict.probability});
    }
    probe.metrics = metrics;
    probe.write(&args.out)?;
    let seconds = begin.elapsed().as_secs_f64();
    super::print(&if args.json {
        let line = json!({
            "out": args.out, "images": images, "classes": probe.classes.len(),
            "metrics": probe.metrics, "seconds_features": features, "seconds_fit": seconds,
        });
        format!("{line}\n")
    } else {
        let measured = verdict.map_or(String::new(), |(verdict, images)| {
            format!(
                "; of {images} validation images {:.1} % show their class, at a mean probability of {:.3}",
                100.0 * verdict.top1,
                verdict.probability
            )
        });
        format!(
            "{}: {} classes, fitted to {images} images in {features:.0} + {seconds:.0} s{measured}\n",
            args.out.display(),
            probe.classes.len()
        )
    })
}

/// Features of images, their labels, the images' size.
type Labelled = (Rows, Vec<u32>, Option<(u32, u32)>);

impl Args {
    fn network(&self, device: &Device) -> Result<Inception> {
        let path = weights::locate(Network::Inception, self.weights.as_deref(), self.download)?;
        Inception::open(&path, &[Output::Pool2048], self.preprocess, device)
    }

    fn features(
        &self,
        what: &str,
        source: Arc<dyn Source>,
        network: &Inception,
    ) -> Result<Labelled> {
        let images = Images::Files {
            source,
            crop: self.crop.map(|c| c as usize),
        };
        let (count, size) = (images.count(), images.size()?);
        let mut rows = Rows::empty(network.taps().first().map_or(0, |tap| tap.width));
        rows.values.reserve_exact(count * rows.width);
        let mut labels = Vec::new();
        let mut progress = Progress::new(what, count as u64, 0);
        let interrupt = Interrupt::listen()?;
        images.each(
            self.batch_size as usize,
            usize::MAX,
            &mut |batch, of_batch| {
                interrupt.check(
                    || format!("after {} of {count} images", labels.len()),
                    || "nothing is kept; the same command starts from scratch".into(),
                )?;
                for found in network.features(&batch)? {
                    check_features(&found, labels.len())?;
                    rows.values.extend(found.values);
                }
                labels.extend_from_slice(of_batch);
                progress.set(labels.len() as u64, "");
                Ok(())
            },
        )?;
        Ok((rows, labels, Some(size)))
    }

    fn fit(
        &self,
        rows: Rows,
        labels: &[u32],
        classes: &Classes,
    ) -> Result<crate::metrics::probe::Parameters> {
        let settings = Settings {
            epochs: self.epochs as usize,
            batch_size: BATCH,
            lr: self.lr,
            weight_decay: self.weight_decay,
            seed: self.seed,
        };
        let total = settings.epochs * labels.len();
        let mut progress = Progress::new("fit", total as u64, 0);
        let interrupt = Interrupt::listen()?;
        fit(rows, labels, classes.len(), &settings, |seen, loss| {
            interrupt.check(
                || format!("after {seen} of {total} examples"),
                || "nothing is kept; the same command starts from scratch".into(),
            )?;
            progress.set(seen.min(total as u64), &format!("loss {loss:.3}"));
            Ok(())
        })
    }
}
