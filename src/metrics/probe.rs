//! A linear probe on Inception's features: which class does an image show?
//!
//! p = softmax(W·(f − μ)/σ + b) for f [2048] → p [K]. Fitted to labelled images ([`fit`]), it says
//! of samples how many show the class that was asked for, which the Fréchet distance does not see.
//!
//! The file (`rdpm-probe/1`, safetensors): `weight` i8 [K,2048] with `weight_scale` f32 [K]
//! ([`crate::store::int8`]), `bias` f32 [K], `mean` and `std` f32 [2048]; in the metadata, as JSON,
//! `classes`, `made_by` (network, its weights, resize, images) and `metrics`.

pub mod fit;
pub mod reject;

use std::path::Path;

use candle_core::{Device, Tensor};
use clap::ValueEnum;
use serde_json::{Map, Value, json};

use super::features::{FeatureNetwork, Rows};
use super::inception::{self, Output};
use super::report::{Evaluation, Measurement};
use super::resize::Preprocess;
use super::side::Side;
use super::stats_file::MadeBy;
use crate::data::Classes;
use crate::error::{Context, Error, Result, hinted, usage};
use crate::ops::{self, finite};
use crate::store::bundle::check_format;
use crate::store::digest;
use crate::store::int8::{self, Int8};
use crate::store::safetensors::{self, Metadata, Raw, Reader};

/// The version this program writes and reads.
pub const FORMAT: &str = "rdpm-probe/1";

/// W, b, μ and σ.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    /// [K,D]
    pub weight: Int8,
    /// [K]
    pub bias: Vec<f32>,
    /// [D]
    pub mean: Vec<f32>,
    /// [D]
    pub std: Vec<f32>,
}

#[derive(Debug, Clone)]
pub struct Probe {
    pub classes: Classes,
    pub made_by: MadeBy,
    /// What was measured after fitting.
    pub metrics: Value,
    /// SHA-256 of the file; empty before it is written.
    pub hash: String,
    parameters: Parameters,
    /// W/σ [K,D]
    weight: Tensor,
    /// b − W·μ/σ [K]
    bias: Tensor,
}

/// How images look to a probe that knows what they should show.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Verdict {
    /// The share whose most probable class is the asked one.
    pub top1: f64,
    /// The mean probability of the asked class.
    pub probability: f64,
}

impl Probe {
    /// Errors say what is wrong with the parameters.
    pub fn new(parameters: Parameters, classes: Classes, made_by: MadeBy) -> Result<Self, String> {
        let Parameters {
            weight,
            bias,
            mean,
            std,
        } = &parameters;
        let (k, d) = (bias.len(), mean.len());
        if weight.shape != [k, d] || std.len() != d || k * d == 0 {
            return Err(format!(
                "expected `weight` [K,D], `bias` [K], `mean` and `std` [D], found {:?}, [{k}], [{d}] and [{}]",
                weight.shape,
                std.len()
            ));
        }
        if classes.len() != k {
            return Err(format!("{} classes and rows for {k}", classes.len()));
        }
        if !bias.iter().chain(mean).all(|x| x.is_finite()) {
            return Err("`bias` or `mean` holds NaN or infinity".into());
        }
        if !std.iter().all(|s| s.is_finite() && *s > 0.0) {
            return Err("`std` holds what is no positive number".into());
        }
        let failed = |e: candle_core::Error| e.to_string();
        let of = |values: &[f32]| Tensor::from_slice(values, values.len(), &Device::Cpu);
        let folded = || {
            let weight = weight.dequantize()?.broadcast_div(&of(std)?)?;
            let shift = ops::linear(&of(mean)?.unsqueeze(0)?, &weight, None)?;
            let bias = (of(bias)? - shift.squeeze(0)?)?;
            Ok((weight, bias))
        };
        let (weight, bias) = folded().map_err(failed)?;
        for folded in [&weight, &bias] {
            if !finite::is_finite(folded).map_err(failed)? {
                return Err("`weight` / `std` is not finite".into());
            }
        }
        Ok(Self {
            classes,
            made_by,
            metrics: json!({}),
            hash: String::new(),
            parameters,
            weight,
            bias,
        })
    }

    /// Errors: another kind of file, another version; damaged parameters.
    pub fn read(path: &Path) -> Result<Self> {
        let reader = Reader::open(path)?;
        let metadata = reader.header()?.metadata;
        check_format(path, metadata.get("format").map(String::as_str), FORMAT)?;
        let damaged = |what: String| {
            hinted(
                format!("{}: {what}", path.display()),
                "the file is damaged: make it again with `rdpm fit-probe`",
            )
        };
        let json = |key: &str| {
            let text = metadata.get(key).map_or("null", String::as_str);
            serde_json::from_str::<Value>(text).map_err(|e| damaged(format!("`{key}`: {e}")))
        };
        let raw = |name: &str| reader.raw(name);
        let needed = |name: &str| -> Result<Raw<'_>> {
            raw(name)?.ok_or_else(|| damaged(format!("`{name}` is missing")))
        };
        let vector = |name: &str| -> Result<Vec<f32>> {
            let tensor = reader.tensor(name, &needed(name)?)?;
            tensor
                .to_dtype(candle_core::DType::F32)
                .and_then(|t| t.to_vec1())
                .map_err(|e| damaged(format!("`{name}`: {e}")))
        };
        let scales = raw(&format!("weight{}", int8::SCALE))?;
        let parameters = Parameters {
            weight: Int8::read(&needed("weight")?, scales.as_ref())
                .map_err(|what| damaged(format!("`weight` {what}")))?,
            bias: vector("bias")?,
            mean: vector("mean")?,
            std: vector("std")?,
        };
        let classes: Classes = serde_json::from_value(json("classes")?)
            .map_err(|e| damaged(format!("`classes`: {e}")))?;
        let made_by: MadeBy = serde_json::from_value(json("made_by")?)
            .map_err(|e| damaged(format!("`made_by`: {e}")))?;
        let probe = Self::new(parameters, classes, made_by).map_err(damaged)?;
        Ok(Self {
            metrics: json("metrics")?,
            hash: digest::sha256(path)?,
            ..probe
        })
    }

    /// Writes the file, completely or not at all.
    pub fn write(&self, path: &Path) -> Result<()> {
        let Parameters {
            weight,
            bias,
            mean,
            std,
        } = &self.parameters;
        let (values, scales) = weight.raws();
        let vector = |values: &[f32]| Raw {
            dtype: ::safetensors::Dtype::F32,
            shape: vec![values.len()],
            bytes: values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        };
        let scale = format!("weight{}", int8::SCALE);
        let views = vec![
            ("weight", values),
            (scale.as_str(), scales),
            ("bias", vector(bias)),
            ("mean", vector(mean)),
            ("std", vector(std)),
        ];
        let metadata = Metadata::from([
            ("format".to_string(), FORMAT.to_string()),
            ("classes".to_string(), serde_json::to_string(&self.classes)?),
            ("made_by".to_string(), serde_json::to_string(&self.made_by)?),
            ("metrics".to_string(), self.metrics.to_string()),
        ]);
        safetensors::write_views(path, views, &metadata)
    }

    /// The resize of the features it was fitted to.
    pub fn preprocess(&self) -> Result<Preprocess> {
        let name = &self.made_by.preprocess;
        Preprocess::from_str(name, false).map_err(|_| {
            hinted(
                format!("--probe: fitted with the resize {name}, which is unknown"),
                "a newer rdpm wrote it: use that one",
            )
        })
    }

    /// D.
    pub fn width(&self) -> usize {
        self.parameters.mean.len()
    }

    /// Errors: the probe was fitted to features of another network, other weights or another
    /// resize.
    pub fn check(&self, network: &dyn FeatureNetwork) -> Result<()> {
        let (made_by, tap) = (&self.made_by, Output::Pool2048.name());
        let width = network.taps().iter().find(|known| known.name == tap);
        let width = width.map_or(0, |tap| tap.width);
        let compared = [
            ("the network", made_by.network.as_str(), network.name()),
            (
                "the resize",
                made_by.preprocess.as_str(),
                network.preprocess(),
            ),
            ("weights", made_by.weights.as_str(), network.weights_hash()),
        ];
        if let Some((what, found, expected)) = compared.iter().find(|(_, a, b)| a != b) {
            return Err(hinted(
                format!("--probe: fitted with {what} {found}, this command uses {expected}"),
                "a probe judges only the features that it was fitted to: use the same, or fit \
                 another with `rdpm fit-probe`",
            ));
        }
        match self.width() == width {
            true => Ok(()),
            false => Err(hinted(
                format!("--probe: expected {width} features, found {}", self.width()),
                "fit another with `rdpm fit-probe`",
            )),
        }
    }

    /// What is wrong about judging images of `size` (width, height), if anything is: features of
    /// a small image are not those of a large one.
    pub fn doubt_of_size(&self, size: (u32, u32)) -> Option<String> {
        let (w, h) = self.made_by.size.filter(|fitted| *fitted != size)?;
        Some(format!(
            "probe: fitted to images of {w}×{h} pixels, it judges images of {}×{} less well",
            size.0, size.1
        ))
    }

    /// The probe's class for each of `used`, indices of `classes`.
    ///
    /// Errors: a class that the probe does not know.
    pub fn classes_of(&self, classes: &Classes, used: &[u32]) -> Result<Vec<u32>> {
        let known: Vec<Option<u32>> = classes
            .iter()
            .map(|class| self.classes.index_of(&class.wnid))
            .collect();
        let of = |index: &u32| known.get(*index as usize).copied().flatten();
        let found = used
            .iter()
            .map(|index| of(index).ok_or_else(|| self.unknown(&classes.described(*index))));
        found.collect()
    }

    fn unknown(&self, class: &str) -> Error {
        let all = 0..self.classes.len() as u32;
        let some: Vec<String> = all.take(3).map(|i| self.classes.described(i)).collect();
        usage(
            format!(
                "--probe: class {class} is not among its {} classes",
                self.classes.len()
            ),
            format!(
                "they go by the names of the data it was fitted to: {}, …",
                some.join("; ")
            ),
        )
    }

    /// p [N,K] of features [N,D]. An image's row does not depend on the others.
    pub fn probabilities(&self, rows: &Rows) -> Result<Rows> {
        let shape = (rows.count(), rows.width);
        let x = Tensor::from_slice(&rows.values, shape, &Device::Cpu)?;
        let mut values = ops::linear(&x, &self.weight, Some(&self.bias))?
            .flatten_all()?
            .to_vec1::<f32>()?;
        let width = self.classes.len();
        values.chunks_exact_mut(width).for_each(softmax);
        Ok(Rows { width, values })
    }

    /// `asked` holds the probe's class for each of the rows.
    pub fn judge(&self, rows: &Rows, asked: &[u32]) -> Result<Verdict> {
        anyhow::ensure!(
            rows.count() == asked.len() && !asked.is_empty(),
            "{} rows of features for {} labels",
            rows.count(),
            asked.len()
        );
        let (mut right, mut sum) = (0, 0.0);
        for (place, asked) in asked.chunks(BLOCK).enumerate() {
            let first = place * BLOCK * rows.width;
            let block = Rows {
                width: rows.width,
                values: rows.values[first..first + asked.len() * rows.width].to_vec(),
            };
            for (p, asked) in self.probabilities(&block)?.iter().zip(asked) {
                right += usize::from(first_of_largest(p) == *asked as usize);
                sum += f64::from(p[*asked as usize]);
            }
        }
        let count = asked.len() as f64;
        Ok(Verdict {
            top1: right as f64 / count,
            probability: sum / count,
        })
    }

    /// Adds `probe_top1` and `probe_prob` of `side` to `found`.
    pub fn measure(
        &self,
        side: &Side,
        networks: &[Box<dyn FeatureNetwork>],
        found: &mut Evaluation,
    ) -> Result<()> {
        let place = networks.iter().position(|n| n.name() == inception::NAME);
        let place = place.context("Inception was not loaded")?;
        let rows = side.rows(place, Output::Pool2048.name())?;
        let labels = side.labels.as_ref().context("the samples have no labels")?;
        let asked = self.classes_of(&labels.classes, &labels.indices)?;
        let verdict = self.judge(rows, &asked)?;
        let identity = &networks[place];
        let measurement = |value| Measurement {
            value,
            samples: Some(rows.count()),
            dims: rows.width,
            network: identity.name().to_string(),
            weights: identity.weights_hash().to_string(),
            preprocess: identity.preprocess().to_string(),
            details: Map::from_iter([
                ("probe".to_string(), json!(self.hash)),
                ("classes".to_string(), json!(self.classes.len())),
                ("fit".to_string(), self.metrics.clone()),
            ]),
            ..Measurement::default()
        };
        let doubt = side.set.size.and_then(|size| self.doubt_of_size(size));
        found.warnings.extend(doubt);
        found.metrics.extend([
            ("probe_top1", measurement(verdict.top1)),
            ("probe_prob", measurement(verdict.probability)),
        ]);
        Ok(())
    }
}

/// Rows that are judged at once.
const BLOCK: usize = 1024;

/// The place of the largest value, the first of equals.
fn first_of_largest(values: &[f32]) -> usize {
    let mut best = 0;
    for (place, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = place;
        }
    }
    best
}

/// In place; the sum in f64, the largest exponent 0.
fn softmax(logits: &mut [f32]) {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for x in logits.iter_mut() {
        *x = (*x - most).exp();
        sum += f64::from(*x);
    }
    logits
        .iter_mut()
        .for_each(|x| *x = (f64::from(*x) / sum) as f32);
}

#[cfg(test)]
mod tests;
