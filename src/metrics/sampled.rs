//! Samples of a model, evaluated as they are drawn. Sample i is of class i mod C, so that every
//! prefix is as balanced as possible.
//!
//! Only features are kept. They are logged a batch at a time, so that an interrupted evaluation can
//! continue. Batches are divided among processes: those of a world, which compute them in turn, or
//! those of a job array, each of which keeps its own part until all are joined.

use std::ops::Range;
use std::rc::Rc;

use serde_json::{Value, json};

use super::collect::{Collector, check_features, features};
use super::feature_log::FeatureLog;
use super::features::{FeatureNetwork, Features};
use crate::error::{Context, Error, Result, interrupted, said};
use crate::interrupt::Interrupt;
use crate::sample::{Draws, LatentDecoder, Pretrained, SampleOptions, Sampler};
use crate::telemetry::Progress;
use crate::world::World;

/// Which samples of which model.
#[derive(Clone)]
pub struct Sampling {
    pub model: Rc<Pretrained>,
    /// Hashes of the model's weights and configuration.
    pub hashes: [String; 2],
    pub classes: Vec<u32>,
    pub count: usize,
    pub seed: u64,
    pub options: SampleOptions,
    pub batch: usize,
}

impl Sampling {
    /// Everything that decides the samples, for reports.
    pub fn identity(&self) -> Value {
        let mut identity = self.stream();
        identity["count"] = json!(self.count);
        identity
    }

    /// Everything that decides sample i, independent of the number of samples: evaluations for
    /// which it is equal share features.
    pub fn stream(&self) -> Value {
        let (classes, options) = (&self.classes, &self.options);
        stream(&self.model, &self.hashes, classes, self.seed, options)
    }

    /// The number of batches: samples that are drawn together, whoever draws them.
    pub fn batches(&self) -> usize {
        self.count.div_ceil(self.batch)
    }

    /// The numbers of the samples of a batch.
    fn numbers(&self, batch: usize) -> Range<usize> {
        let first = batch * self.batch;
        first..(first + self.batch).min(self.count)
    }

    /// The class of sample `i`, the model's index.
    pub fn label(&self, i: usize) -> u32 {
        self.classes[i % self.classes.len()]
    }

    /// How many samples are in the batches index, index + count, index + 2·count, …: those of part
    /// `index` of `count`.
    pub fn count_of_part(&self, index: usize, count: usize) -> usize {
        let batches = (index..self.batches()).step_by(count);
        batches.map(|batch| self.numbers(batch).len()).sum()
    }

    /// Passes all features to `collector` at rank 0: first those in `log`, which it has, then those
    /// of the missing samples, which all ranks compute and which are also added to `log`.
    ///
    /// Errors: a signal asked a rank to stop; no sample is lost.
    pub fn collect(
        &self,
        mut log: Option<FeatureLog>,
        collector: &mut Collector,
        networks: &[Box<dyn FeatureNetwork>],
        world: &World,
    ) -> Result<()> {
        if let Some(log) = &mut log {
            log.replay(self.count, 256, |features| collector.rows(features))?;
            if collector.count() > 0 {
                tracing::info!(
                    "the features of {} of {} samples are known",
                    collector.count(),
                    self.count
                );
            }
        }
        let known = world.broadcast(collector.count().to_le_bytes().to_vec())?;
        let known = usize::from_le_bytes(known[..].try_into().context("a count")?);
        let missing = match known < self.count {
            true => known / self.batch..self.batches(),
            false => 0..0,
        };
        let drawer = Drawer::new(self, networks)?;
        let interrupt = Interrupt::listen()?;
        let mut progress = world
            .is_first()
            .then(|| Progress::new("sample", self.count as u64, known as u64));
        let stopped = world.parcels(
            missing,
            || interrupt.requested(),
            |batch| {
                let numbers = self.numbers(batch);
                drawer.features(numbers.start.max(known)..numbers.end)
            },
            |_, features: Features| {
                collector.rows(&features.0)?;
                if let Some(log) = &mut log {
                    log.append(&features.0)?;
                }
                if let Some(progress) = &mut progress {
                    progress.set(collector.count() as u64, "");
                }
                Ok(())
            },
        )?;
        // Also after the last batch, because a sweep would continue with other settings.
        if stopped.is_none() {
            return Ok(());
        }
        world.part()?;
        let error = self.stopped(collector.count(), self.count);
        Err(match world.is_first() {
            true => error,
            false => said(&error),
        })
    }

    /// Adds the features of part `index` of `count` to `log`, which holds its first ones.
    ///
    /// Errors: a signal asked to stop; no sample is lost.
    pub fn collect_part(
        &self,
        log: &mut FeatureLog,
        networks: &[Box<dyn FeatureNetwork>],
        (index, count): (usize, usize),
    ) -> Result<()> {
        let all = self.count_of_part(index, count);
        let drawer = Drawer::new(self, networks)?;
        let interrupt = Interrupt::listen()?;
        let mut progress = Progress::new("sample", all as u64, log.count() as u64);
        while log.count() < all {
            let (own, done) = (log.count() / self.batch, log.count() % self.batch);
            let numbers = self.numbers(index + own * count);
            let features = drawer.features(numbers.start + done..numbers.end)?.0;
            for rows in &features {
                check_features(rows, numbers.start + done)?;
            }
            log.append(&features)?;
            progress.set(log.count() as u64, "");
            if interrupt.requested() {
                return Err(self.stopped(log.count(), all));
            }
        }
        Ok(())
    }

    /// Adds the features that all `parts` have together to `log`.
    pub fn join(&self, parts: &mut [FeatureLog], log: &mut FeatureLog) -> Result<()> {
        while log.count() < self.count {
            let (batch, done) = (log.count() / self.batch, log.count() % self.batch);
            let (part, own) = (batch % parts.len(), batch / parts.len());
            let count = self.numbers(batch).len() - done;
            let features = parts[part].rows(own * self.batch + done, count)?;
            log.append(&features)?;
        }
        Ok(())
    }

    fn stopped(&self, done: usize, all: usize) -> Error {
        interrupted(
            format!("stopped after {done} of {all} samples"),
            "the same command continues from there",
        )
    }
}

/// Everything that decides the samples of a model, by their numbers.
pub fn stream(
    model: &Pretrained,
    hashes: &[String; 2],
    classes: &[u32],
    seed: u64,
    options: &SampleOptions,
) -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": hashes[0],
        "config": hashes[1],
        "seed": seed,
        "classes": classes,
        "sampler": model.sampler_name(),
        "cfg": options.cfg,
        "cfg_schedule": options.cfg_schedule,
        "temperature": options.temperature,
        "gumbel": options.gumbel,
        "top_k": options.top_k,
        "top_p": options.top_p,
    })
}

/// Draws samples and computes their features.
struct Drawer<'a> {
    sampling: &'a Sampling,
    networks: &'a [Box<dyn FeatureNetwork>],
    sampler: Sampler<'a>,
    decoder: LatentDecoder<'a>,
}

impl<'a> Drawer<'a> {
    fn new(sampling: &'a Sampling, networks: &'a [Box<dyn FeatureNetwork>]) -> Result<Self> {
        Ok(Self {
            sampling,
            networks,
            sampler: sampling.model.sampler()?,
            decoder: LatentDecoder::new(&sampling.model.tokenizer),
        })
    }

    /// The features of the samples `wanted`, which are of one batch.
    fn features(&self, wanted: Range<usize>) -> Result<Features> {
        let sampling = self.sampling;
        // On a GPU, codes depend on the size of the batch: it is always whole.
        let drawn = match sampling.model.device.is_cpu() {
            true => wanted.clone(),
            false => {
                let first = wanted.start / sampling.batch * sampling.batch;
                first..first + sampling.batch
            }
        };
        let numbers: Vec<u64> = drawn.clone().map(|i| i as u64).collect();
        let labels: Vec<u32> = drawn.clone().map(|i| sampling.label(i)).collect();
        let draws = Draws::Seeded {
            seed: sampling.seed,
            indices: &numbers,
        };
        let z = self.sampler.latent(&labels, &draws, &sampling.options)?;
        let name = |i: usize| format!("image {}", numbers[i]);
        let images = self.decoder.images(&z, name)?;
        let wanted = wanted.start - drawn.start..wanted.end - drawn.start;
        features(self.networks, &images[wanted]).map(Features)
    }
}
