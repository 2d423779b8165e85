//! From two sides to metrics: which features each metric needs, and what it is computed from.

use serde_json::{Map, Value, json};

use super::distances::Arithmetic;
use super::features::{FeatureNetwork, Rows};
use super::fid_infinity::{fid_infinity, smallest_subset};
use super::frechet::Reference;
use super::inception::{self, Output};
use super::inception_score::{self, Score};
use super::kid::kid;
use super::options::{Metric, Options, PR_REFERENCE};
use super::precision_recall::precision_recall;
use super::report::{Evaluation, Measurement};
use super::side::Side;
use super::{clip, dinov2, images};
use crate::error::{Result, hinted};

/// A running evaluation.
pub struct Evaluator<'a> {
    pub options: &'a Options,
    pub networks: &'a [Box<dyn FeatureNetwork>],
    pub reference: &'a Side,
    /// References of Fréchet distances, by network and tap; their eigenvectors are computed once
    /// for a whole sweep.
    references: Vec<((usize, &'static str), Reference)>,
}

impl<'a> Evaluator<'a> {
    pub fn new(
        options: &'a Options,
        networks: &'a [Box<dyn FeatureNetwork>],
        reference: &'a Side,
    ) -> Self {
        Self {
            options,
            networks,
            reference,
            references: Vec::new(),
        }
    }

    /// All metrics of `samples`.
    pub fn evaluate(&mut self, samples: &Side) -> Result<Evaluation> {
        let mut found = Evaluation {
            samples: samples.set.clone(),
            ..Evaluation::default()
        };
        let fid = self.options.fid.name();
        for metric in &self.options.metrics {
            match metric {
                Metric::Fid => self.frechet(samples, "fid", self.inception()?, fid, &mut found)?,
                Metric::Sfid => {
                    let tap = Output::Spatial.name();
                    self.frechet(samples, "sfid", self.inception()?, tap, &mut found)?;
                }
                Metric::FdDinov2 => self.whole(samples, "fd_dinov2", dinov2::NAME, &mut found)?,
                Metric::ClipFid => self.whole(samples, "clip_fid", clip::NAME, &mut found)?,
                Metric::FidInf => {
                    let inception = self.inception()?;
                    let rows = samples.rows(inception, fid)?;
                    let seed = self.options.seed;
                    let value = fid_infinity(self.reference(inception, fid)?, rows, seed)?;
                    let details = [("seed", json!(seed))];
                    let mut measurement =
                        self.measurement(value, samples, inception, rows.width, &details);
                    measurement.samples = Some(rows.count());
                    let smallest = smallest_subset(rows.count());
                    let counts = [
                        (Some(smallest), "samples of the smallest subset"),
                        (measurement.reference, "reference images"),
                    ];
                    found.warn_of_few("fid_infinity", measurement.dims, counts);
                    found.metrics.push(("fid_infinity", measurement));
                }
                Metric::Is => self.inception_scores(samples, &mut found)?,
                Metric::Pr => self.precision_recall(samples, &mut found)?,
                Metric::Kid => self.kid(samples, &mut found)?,
            }
        }
        found.warn_of_bad();
        Ok(found)
    }

    fn inception(&self) -> Result<usize> {
        self.place(inception::NAME)
    }

    fn place(&self, network: &str) -> Result<usize> {
        let found = self.networks.iter().position(|n| n.name() == network);
        found.ok_or_else(|| hinted(format!("the network {network} was not loaded"), ""))
    }

    /// The Fréchet distance for the only tap of `network`.
    fn whole(
        &mut self,
        samples: &Side,
        name: &'static str,
        network: &str,
        found: &mut Evaluation,
    ) -> Result<()> {
        let place = self.place(network)?;
        match self.networks[place].taps().first().map(|tap| tap.name) {
            Some(tap) => self.frechet(samples, name, place, tap, found),
            None => Err(hinted(format!("{network} gives no features"), "")),
        }
    }

    fn frechet(
        &mut self,
        samples: &Side,
        name: &'static str,
        network: usize,
        tap: &'static str,
        found: &mut Evaluation,
    ) -> Result<()> {
        let gaussian = samples.gaussian(network, tap)?;
        let value = self.reference(network, tap)?.distance(&gaussian)?;
        let interval = match self.options.interval {
            true => {
                let moments = samples.moments(network, tap)?;
                Some(self.reference(network, tap)?.interval(value, moments)?)
            }
            false => None,
        };
        let mut measurement = self.measurement(value, samples, network, gaussian.width(), &[]);
        measurement.interval = interval;
        let counts = [
            (measurement.samples, "samples"),
            (measurement.reference, "reference images"),
        ];
        found.warn_of_few(name, measurement.dims, counts);
        found.metrics.push((name, measurement));
        Ok(())
    }

    fn reference(&mut self, network: usize, tap: &'static str) -> Result<&Reference> {
        let known = self
            .references
            .iter()
            .position(|(key, _)| *key == (network, tap));
        let place = match known {
            Some(place) => place,
            None => {
                let reference = Reference::new(&self.reference.gaussian(network, tap)?)?;
                self.references.push(((network, tap), reference));
                self.references.len() - 1
            }
        };
        Ok(&self.references[place].1)
    }

    fn inception_scores(&self, samples: &Side, found: &mut Evaluation) -> Result<()> {
        let inception = self.inception()?;
        let logits = samples.rows(inception, Output::Logits.name())?;
        let seed = self.options.seed;
        let measurement = |score: Score, details: &[(&str, Value)]| {
            let mut measurement =
                self.measurement(score.value, samples, inception, logits.width, details);
            measurement.deviation = Some(score.deviation);
            measurement.samples = Some(logits.count());
            measurement.reference = None;
            measurement
                .details
                .insert("splits".into(), json!(score.splits));
            measurement
        };
        let ordered = inception_score::in_order(logits);
        let shuffled = inception_score::shuffled(logits, seed);
        found.metrics.push(("is", measurement(ordered, &[])));
        let details = [("seed", json!(seed))];
        found
            .metrics
            .push(("is_shuffled", measurement(shuffled, &details)));
        Ok(())
    }

    fn precision_recall(&self, samples: &Side, found: &mut Evaluation) -> Result<()> {
        let tap = Output::Pool2048.name();
        let inception = self.inception()?;
        let made = samples.rows(inception, tap)?;
        let real = spread(self.reference.rows(inception, tap)?, PR_REFERENCE);
        let both = precision_recall(&real, made, self.options.arithmetic)?;
        for (name, value) in [("precision", both.precision), ("recall", both.recall)] {
            let details = [("neighbour", json!(3)), ("fp16", json!(both.half))];
            let mut measurement = self.measurement(value, samples, inception, made.width, &details);
            measurement.samples = Some(made.count());
            measurement.reference = Some(real.count());
            found.metrics.push((name, measurement));
        }
        if self.options.arithmetic == Arithmetic::Half && !both.half {
            found.warnings.push(
                "--adm-fp16-distances: they exceed f16, and were computed exactly, as ADM's evaluator does".into(),
            );
        }
        Ok(())
    }

    fn kid(&self, samples: &Side, found: &mut Evaluation) -> Result<()> {
        let tap = Output::Pool2048.name();
        let inception = self.inception()?;
        let (made, real) = (
            samples.rows(inception, tap)?,
            self.reference.rows(inception, tap)?,
        );
        let subsets = self.options.subsets(made.count(), real.count());
        let kid = kid(made, real, subsets)?;
        let details = [
            ("subsets", json!(subsets.count)),
            ("subset_size", json!(subsets.size)),
            ("seed", json!(subsets.seed)),
        ];
        let mut measurement = self.measurement(kid.value, samples, inception, made.width, &details);
        measurement.deviation = Some(kid.deviation);
        measurement.samples = Some(made.count());
        measurement.reference = Some(real.count());
        found.metrics.push(("kid", measurement));
        Ok(())
    }

    fn measurement(
        &self,
        value: f64,
        samples: &Side,
        network: usize,
        dims: usize,
        details: &[(&str, Value)],
    ) -> Measurement {
        let identity = &self.networks[network];
        let details = details.iter().map(|(k, v)| (k.to_string(), v.clone()));
        Measurement {
            value,
            samples: samples.count(network),
            reference: self.reference.count(network),
            dims,
            network: identity.name().to_string(),
            weights: identity.weights_hash().to_string(),
            preprocess: identity.preprocess().to_string(),
            details: Map::from_iter(details),
            ..Measurement::default()
        }
    }
}

/// At most `limit` rows, evenly spaced, so that a set sorted by class keeps all its classes.
fn spread(rows: &Rows, limit: usize) -> std::borrow::Cow<'_, Rows> {
    let count = rows.count();
    if count <= limit {
        return std::borrow::Cow::Borrowed(rows);
    }
    let mut chosen = Rows::empty(rows.width);
    for i in 0..limit {
        let row = images::spread(i, count, limit);
        chosen
            .values
            .extend_from_slice(&rows.values[row * rows.width..][..rows.width]);
    }
    std::borrow::Cow::Owned(chosen)
}

#[cfg(test)]
mod tests;
