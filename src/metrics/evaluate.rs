//! From two sides to figures: which features each metric needs, and what it is computed of.

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use super::distances::Arithmetic;
use super::features::{FeatureNetwork, Rows};
use super::fid_infinity::{fid_infinity, smallest_subset};
use super::frechet::{GROUPS, Reference};
use super::inception::{self, Output};
use super::inception_score::{self, Score};
use super::kid::kid;
use super::precision_recall::precision_recall;
use super::report::{Evaluation, Figure};
use super::side::Side;
use super::statistics::Groups;
use super::{clip, dinov2, images};
use crate::error::{Result, hinted};

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Metric {
    /// Fréchet Inception Distance
    Fid,
    /// FID of spatial features
    Sfid,
    /// Inception Score, in order and shuffled
    Is,
    /// Precision and recall
    Pr,
    /// Kernel Inception Distance
    Kid,
    /// FID extrapolated to infinitely many samples
    FidInf,
    /// Fréchet distance of DINOv2 features
    FdDinov2,
    /// Fréchet distance of CLIP features
    ClipFid,
}

/// Images of the reference that precision and recall take at most: ADM's number.
pub(super) const PR_REFERENCE: usize = 10_000;

/// torch-fidelity's subsets of KID.
pub const KID_SUBSETS: usize = 100;
pub const KID_SUBSET_SIZE: usize = 1000;

/// How figures are computed.
#[derive(Debug, Clone)]
pub struct Options {
    pub metrics: Vec<Metric>,
    /// FID's features.
    pub fid: Output,
    pub interval: bool,
    pub arithmetic: Arithmetic,
    pub kid_subsets: usize,
    /// Else as many as torch-fidelity takes, or all there are.
    pub kid_subset_size: Option<usize>,
    /// FID's features are asked for even where no metric needs them.
    pub save_statistics: bool,
    pub seed: u64,
}

impl Options {
    pub fn wants(&self, metric: Metric) -> bool {
        self.metrics.contains(&metric)
    }

    /// Whether a Fréchet distance is of Inception's tap `name`, or its statistics are saved.
    pub fn compares(&self, name: &str) -> bool {
        let fid = self.wants(Metric::Fid) || self.wants(Metric::FidInf) || self.save_statistics;
        (fid && name == self.fid.name())
            || (self.wants(Metric::Sfid) && name == Output::Spatial.name())
    }

    /// What Inception has to give.
    pub fn outputs(&self) -> Vec<Output> {
        let mut outputs = Vec::new();
        if self.compares(self.fid.name()) {
            outputs.push(self.fid);
        }
        if self.compares(Output::Spatial.name()) {
            outputs.push(Output::Spatial);
        }
        if (self.wants(Metric::Pr) || self.wants(Metric::Kid))
            && !outputs.contains(&Output::Pool2048)
        {
            outputs.push(Output::Pool2048);
        }
        if self.wants(Metric::Is) {
            outputs.push(Output::Logits);
        }
        outputs
    }

    /// Whether each sample's features of the tap `name` are needed.
    pub fn keeps_sample_rows(&self, name: &str) -> bool {
        name == Output::Logits.name()
            || self.keeps_reference_rows(name)
            || (self.wants(Metric::FidInf) && name == self.fid.name())
    }

    pub fn keeps_reference_rows(&self, name: &str) -> bool {
        (self.wants(Metric::Pr) || self.wants(Metric::Kid)) && name == Output::Pool2048.name()
    }

    /// Groups of the samples' moments, of samples in no order.
    pub fn groups(&self) -> Groups {
        match self.interval {
            true => Groups {
                count: GROUPS,
                period: 1,
                seed: self.seed,
            },
            false => Groups::ONE,
        }
    }

    /// Whether the reference's images are needed where its statistics are known.
    pub fn needs_reference_images(&self) -> bool {
        let images = [Metric::Pr, Metric::Kid, Metric::FdDinov2, Metric::ClipFid];
        images.iter().any(|metric| self.wants(*metric))
    }

    /// Whether the samples' images are needed where their statistics are known.
    pub fn needs_sample_images(&self) -> bool {
        self.needs_reference_images()
            || self.interval
            || self.wants(Metric::Is)
            || self.wants(Metric::FidInf)
    }
}

/// One evaluation at work.
pub struct Evaluator<'a> {
    pub options: &'a Options,
    pub networks: &'a [Box<dyn FeatureNetwork>],
    pub reference: &'a Side,
    /// Of Fréchet distances, by network and tap: eigenvectors are computed once for a whole sweep.
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

    /// All figures of `samples`.
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
                    let mut figure = self.figure(value, samples, inception, rows.width, &details);
                    figure.samples = Some(rows.count());
                    let smallest = smallest_subset(rows.count());
                    let counts = [
                        (Some(smallest), "samples of the smallest subset"),
                        (figure.reference, "reference images"),
                    ];
                    found.warn_of_few("fid_infinity", figure.dims, counts);
                    found.metrics.push(("fid_infinity", figure));
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

    /// The Fréchet distance in the only tap of `network`.
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
        let mut figure = self.figure(value, samples, network, gaussian.width(), &[]);
        figure.interval = interval;
        let counts = [
            (figure.samples, "samples"),
            (figure.reference, "reference images"),
        ];
        found.warn_of_few(name, figure.dims, counts);
        found.metrics.push((name, figure));
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
        let figure = |score: Score, details: &[(&str, Value)]| {
            let mut figure = self.figure(score.value, samples, inception, logits.width, details);
            figure.deviation = Some(score.deviation);
            figure.samples = Some(logits.count());
            figure.reference = None;
            figure.details.insert("splits".into(), json!(score.splits));
            figure
        };
        let ordered = inception_score::in_order(logits);
        let shuffled = inception_score::shuffled(logits, seed);
        found.metrics.push(("is", figure(ordered, &[])));
        let details = [("seed", json!(seed))];
        found
            .metrics
            .push(("is_shuffled", figure(shuffled, &details)));
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
            let mut figure = self.figure(value, samples, inception, made.width, &details);
            figure.samples = Some(made.count());
            figure.reference = Some(real.count());
            found.metrics.push((name, figure));
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
        let mut figure = self.figure(kid.value, samples, inception, made.width, &details);
        figure.deviation = Some(kid.deviation);
        figure.samples = Some(made.count());
        figure.reference = Some(real.count());
        found.metrics.push(("kid", figure));
        Ok(())
    }

    fn figure(
        &self,
        value: f64,
        samples: &Side,
        network: usize,
        dims: usize,
        details: &[(&str, Value)],
    ) -> Figure {
        let identity = &self.networks[network];
        let details = details.iter().map(|(k, v)| (k.to_string(), v.clone()));
        Figure {
            value,
            samples: samples.count(network),
            reference: self.reference.count(network),
            dims,
            network: identity.name().to_string(),
            weights: identity.weights_hash().to_string(),
            preprocess: identity.preprocess().to_string(),
            details: Map::from_iter(details),
            ..Figure::default()
        }
    }
}

/// At most `limit` rows, evenly spread: a set sorted by class keeps all its classes.
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
