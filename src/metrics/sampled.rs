//! Samples of a model as they are drawn: number i is of class i mod C, so that every prefix is as balanced as can be.
//!
//! Nothing but features is kept; they are logged a batch at a time, and an interrupted evaluation goes on from there.

use std::path::Path;

use serde_json::{Value, json};

use super::collect::Collector;
use super::feature_log::FeatureLog;
use super::features::FeatureNetwork;
use crate::error::{Result, interrupted};
use crate::sample::{Draws, Pretrained, SampleOptions, to_rgb};
use crate::telemetry::Progress;
use crate::train::interrupt::Interrupt;

/// Which samples of which model.
pub struct Sampling<'a> {
    pub model: &'a Pretrained,
    pub classes: Vec<u32>,
    pub count: usize,
    pub seed: u64,
    pub options: SampleOptions,
    pub batch: usize,
}

impl Sampling<'_> {
    /// What decides the samples, for reports and to tell one evaluation from another.
    pub fn identity(&self) -> Result<Value> {
        let options = &self.options;
        Ok(json!({
            "model": self.model.hash()?,
            "config": self.model.config_hash()?,
            "seed": self.seed,
            "count": self.count,
            "classes": self.classes,
            "cfg": options.cfg,
            "cfg_schedule": options.cfg_schedule,
            "temperature": options.temperature,
            "gumbel": options.gumbel,
            "top_k": options.top_k,
            "top_p": options.top_p,
        }))
    }

    /// Draws what the log in `work` lacks, and hands all features to `collector`.
    ///
    /// Errors: `work` holds another evaluation; a signal asked to stop, which costs no sample.
    pub fn collect(
        &self,
        work: &Path,
        networks: &[Box<dyn FeatureNetwork>],
        collector: &mut Collector,
    ) -> Result<()> {
        let networks: Vec<Value> = networks
            .iter()
            .map(|n| json!([n.name(), n.weights_hash(), n.preprocess(), tap_names(&**n)]))
            .collect();
        let identity = json!({"samples": self.identity()?, "networks": networks});
        let mut log = FeatureLog::open(work, &identity, &collector.widths())?;
        if log.count() > 0 {
            tracing::info!(
                "{} of {} samples are known from {}",
                log.count(),
                self.count,
                work.display()
            );
        }
        log.replay(256, |features| collector.rows(features))?;
        let sampler = self.model.sampler()?;
        let interrupt = Interrupt::listen()?;
        let mut progress = Progress::new("sample", self.count as u64, log.count() as u64);
        while log.count() < self.count {
            let first = log.count();
            let numbers: Vec<u64> =
                (first as u64..self.count.min(first + self.batch) as u64).collect();
            let label = |n: &u64| self.classes[(n % self.classes.len() as u64) as usize];
            let labels: Vec<u32> = numbers.iter().map(label).collect();
            let draws = Draws::Seeded {
                seed: self.seed,
                indices: &numbers,
            };
            let images = to_rgb(&sampler.images(&labels, &draws, &self.options)?)?;
            log.append(&collector.images(&images)?)?;
            progress.set(log.count() as u64, "");
            if interrupt.requested() && log.count() < self.count {
                return Err(interrupted(
                    format!("stopped after {} of {} samples", log.count(), self.count),
                    "the same command goes on from there",
                ));
            }
        }
        Ok(())
    }
}

fn tap_names(network: &dyn FeatureNetwork) -> Vec<&'static str> {
    network.taps().iter().map(|tap| tap.name).collect()
}
