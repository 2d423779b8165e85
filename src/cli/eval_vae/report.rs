//! What `eval-vae` found: a table for people, `report.json` for machines.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::config::Config;
use crate::error::Result;
use crate::metrics::FeatureNetwork;
use crate::metrics::reconstruction::{Judge, Mean, Quality};
use crate::metrics::report::{Measurement, Set};
use crate::store::digest::hex;
use crate::train::usage::Usage;

pub(super) struct Found<'a> {
    pub model: &'a Path,
    pub tokenizer: String,
    pub config: &'a Config,
    pub seed: u64,
    pub images: usize,
    pub skipped: usize,
    /// SHA-256 of the SHA-256 of each cropped original.
    pub originals: String,
    pub judge: &'a Judge,
    /// SHA-256 of VGG16's file and of the heads' file.
    pub lpips_weights: &'a [String],
    /// For the last steps up to T.
    pub qualities: &'a [Quality],
    /// The Fréchet distances per step.
    pub distances: &'a [Vec<f64>],
    pub usage: &'a Usage,
}

impl Found<'_> {
    /// The names of a Fréchet distance in tables and in reports, by Inception output.
    fn names(&self) -> Vec<(&'static str, &'static str, usize)> {
        let taps = self.judge.inception.iter().flat_map(|i| i.taps());
        taps.map(|tap| match tap.name {
            "spatial" => ("rsFID", "rsfid", tap.width),
            _ => ("rFID", "rfid", tap.width),
        })
        .collect()
    }

    /// PSNR, SSIM and LPIPS of the last step, as far as they were requested.
    fn means(&self) -> Vec<(&'static str, &'static str, Mean)> {
        let Some(last) = self.qualities.last() else {
            return Vec::new();
        };
        [
            ("PSNR", "psnr", last.psnr),
            ("SSIM", "ssim", last.ssim),
            ("LPIPS", "lpips", last.lpips),
        ]
        .into_iter()
        .filter(|(_, _, mean)| mean.count > 0)
        .collect()
    }

    /// The index of rFID among the distances.
    fn rfid(&self) -> Option<usize> {
        self.names().iter().position(|(name, ..)| *name == "rFID")
    }

    /// In the format of eval-fid: two sets, and metrics with what they depend on.
    pub fn report(&self) -> Result<Value> {
        let side = self.config.data.image_size as u32;
        let reference = Set {
            path: "the originals' crops".into(),
            kind: "images",
            hash: self.originals.clone(),
            images: Some(self.images),
            size: Some((side, side)),
            ..Set::default()
        };
        let config = hex(&Sha256::digest(serde_json::to_vec(self.config)?));
        let depends = json!({"tokenizer": self.tokenizer, "config": config, "seed": self.seed});
        let samples = Set {
            path: self.model.display().to_string(),
            kind: "reconstructions",
            hash: hex(&Sha256::digest(format!("{depends} {}", self.originals))),
            sampling: Some(depends),
            ..reference.clone()
        };
        let mut report = json!({
            "format": "rdpm-eval-vae/1",
            "version": env!("CARGO_PKG_VERSION"),
            "seed": self.seed,
            "reference": reference,
            "samples": samples,
            "skipped": self.skipped,
            "metrics": self.metrics(),
            "warnings": self.warnings(),
        });
        if self.qualities.len() > 1 {
            let psnr: Vec<f64> = self.qualities.iter().map(|q| q.psnr.value()).collect();
            report["steps_curve"] = json!({"psnr": psnr});
            if let Some(place) = self.rfid() {
                let rfid: Vec<f64> = self.distances.iter().map(|d| d[place]).collect();
                report["steps_curve"]["rfid"] = json!(rfid);
            }
        }
        Ok(report)
    }

    fn metrics(&self) -> Map<String, Value> {
        let mut metrics = Map::new();
        if let (Some(inception), Some(distances)) = (&self.judge.inception, self.distances.last()) {
            for ((_, name, dims), &value) in self.names().into_iter().zip(distances) {
                let measurement = Measurement {
                    value,
                    samples: Some(self.images),
                    reference: Some(self.images),
                    dims,
                    network: inception.name().into(),
                    weights: inception.weights_hash().into(),
                    preprocess: inception.preprocess().into(),
                    ..Measurement::default()
                };
                metrics.insert(name.into(), json!(measurement));
            }
        }
        for (_, name, mean) in self.means() {
            let (value, interval) = (mean.value(), mean.interval());
            let measurement = json!({"value": value, "interval": interval, "samples": mean.count});
            metrics.insert(name.into(), measurement);
        }
        if let Some(lpips) = metrics.get_mut("lpips") {
            lpips["weights"] = json!(self.lpips_weights);
        }
        let per_step = |value: Value| json!({"value": value, "samples": self.images});
        metrics.insert("codes_used".into(), per_step(json!(self.usage.used())));
        let perplexity = json!(self.usage.perplexity());
        metrics.insert("perplexity".into(), per_step(perplexity));
        metrics
    }

    fn warnings(&self) -> Vec<String> {
        let few = |(_, name, dims): (&str, &str, usize)| {
            (self.images <= dims).then(|| {
                format!(
                    "{name}: {} images in {dims} dimensions: the covariance is singular and the measurement far too high; \
                     compare it with figures of as many images only",
                    self.images
                )
            })
        };
        let mut warnings: Vec<String> = self.names().into_iter().filter_map(few).collect();
        for (name, _, mean) in self.means() {
            if let Some(image) = mean.bad {
                warnings.push(format!(
                    "{name} is not finite ({}): first that of image number {image} (from 0)",
                    mean.value()
                ));
            }
        }
        for (t, distances) in self.distances.iter().enumerate() {
            for ((name, ..), value) in self.names().into_iter().zip(distances) {
                if !value.is_finite() {
                    let t = self.usage.used().len() - self.distances.len() + t + 1;
                    warnings.push(format!("{name} of z'_{t} is not finite ({value})"));
                }
            }
        }
        warnings
    }

    pub fn table(&self) -> String {
        let size = self.config.data.image_size;
        let mut text = format!(
            "{}: {} images of {size}×{size}\n",
            self.model.display(),
            self.images
        );
        // Writing to a string cannot fail.
        let mut line = |args: std::fmt::Arguments| {
            let _ = writeln!(text, "{args}");
        };
        let distances = self.distances.last().into_iter().flatten();
        for ((name, _, width), value) in self.names().into_iter().zip(distances) {
            line(format_args!("{name:<6} {value:>10.4}  {width} dimensions"));
        }
        for (name, _, mean) in self.means() {
            let around = mean
                .interval()
                .map(|[low, high]| format!("  ± {:.4}", (high - low) / 2.0));
            let around = around.unwrap_or_default();
            line(format_args!("{name:<6} {:>10.4}{around}", mean.value()));
        }
        if let Some(inception) = &self.judge.inception {
            line(format_args!(
                "network {}, {}, weights {:.12}",
                inception.name(),
                inception.preprocess(),
                inception.weights_hash()
            ));
        }
        let place = self.rfid();
        let steps = self.usage.used().len();
        let curve = self.qualities.len() == steps && steps > 1;
        let headings = match (curve, place) {
            (true, Some(_)) => "       PSNR        rFID",
            (true, None) => "       PSNR",
            (false, _) => "",
        };
        line(format_args!("\n t  codes used  perplexity{headings}"));
        let rows = self.usage.used().into_iter().zip(self.usage.perplexity());
        for (i, (used, perplexity)) in rows.enumerate() {
            let mut more = String::new();
            if curve {
                let _ = write!(more, "  {:>9.4}", self.qualities[i].psnr.value());
                if let Some(place) = place {
                    let _ = write!(more, "  {:>10.4}", self.distances[i][place]);
                }
            }
            line(format_args!(
                "{:>2}  {used:>10}  {perplexity:>10.1}{more}",
                i + 1
            ));
        }
        for warning in self.warnings() {
            let _ = writeln!(text, "warning: {warning}");
        }
        text
    }
}
