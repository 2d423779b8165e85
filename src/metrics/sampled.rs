//! Samples of a model, evaluated as they are drawn. Sample i is of class i mod C, so that every
//! prefix is as balanced as possible.
//!
//! Only features are kept. They are logged a batch at a time, so that an interrupted evaluation can
//! continue.

use std::rc::Rc;

use serde_json::{Value, json};

use super::collect::Collector;
use super::feature_log::FeatureLog;
use crate::error::{Result, interrupted};
use crate::interrupt::Interrupt;
use crate::sample::{Draws, LatentDecoder, Pretrained, SampleOptions};
use crate::telemetry::Progress;

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
        let ([model, config], options) = (&self.hashes, &self.options);
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "model": model,
            "config": config,
            "seed": self.seed,
            "classes": self.classes,
            "sampler": self.model.sampler_name(),
            "cfg": options.cfg,
            "cfg_schedule": options.cfg_schedule,
            "temperature": options.temperature,
            "gumbel": options.gumbel,
            "top_k": options.top_k,
            "top_p": options.top_p,
        })
    }

    /// The class of sample `i`, the model's index.
    pub fn label(&self, i: usize) -> u32 {
        self.classes[i % self.classes.len()]
    }

    /// Passes all features to `collector`: first those in `log`, then those of the missing samples,
    /// which are also added to `log`.
    ///
    /// Errors: a signal asked to stop; no sample is lost.
    pub fn collect(&self, mut log: FeatureLog, collector: &mut Collector) -> Result<()> {
        log.replay(self.count, 256, |features| collector.rows(features))?;
        if collector.count() > 0 {
            tracing::info!(
                "the features of {} of {} samples are known",
                collector.count(),
                self.count
            );
        }
        let sampler = self.model.sampler()?;
        let decoder = LatentDecoder::new(&self.model.tokenizer);
        let interrupt = Interrupt::listen()?;
        let mut progress = Progress::new("sample", self.count as u64, collector.count() as u64);
        while log.count() < self.count {
            let first = log.count();
            let numbers: Vec<u64> =
                (first as u64..self.count.min(first + self.batch) as u64).collect();
            let labels: Vec<u32> = numbers.iter().map(|n| self.label(*n as usize)).collect();
            let draws = Draws::Seeded {
                seed: self.seed,
                indices: &numbers,
            };
            let z = sampler.latent(&labels, &draws, &self.options)?;
            let images = decoder.images(&z, |i| format!("image {}", numbers[i]))?;
            log.append(&collector.images(&images)?)?;
            progress.set(log.count() as u64, "");
            // Also after the last batch, because a sweep would continue with other settings.
            if interrupt.requested() {
                return Err(interrupted(
                    format!("stopped after {} of {} samples", log.count(), self.count),
                    "the same command continues from there",
                ));
            }
        }
        Ok(())
    }
}
