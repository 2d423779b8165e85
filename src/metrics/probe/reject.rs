//! Rejection sampling (the paper's "-re" rows): of N candidates for an image, the one that a probe
//! finds most likely to show the asked class.
//!
//! Candidate j of image i is the sample of number i·N + j, so that images depend neither on the
//! batch size nor on how many there are.

use image::RgbImage;
use serde_json::{Value, json};

use super::Probe;
use crate::data::{Class, Classes};
use crate::error::{Context, Result};
use crate::metrics::collect::check_features;
use crate::metrics::{FeatureNetwork, Output};

/// Judges candidates.
pub struct Rejection {
    network: Box<dyn FeatureNetwork>,
    probe: Probe,
    /// The probe's class for each of the model's.
    classes: Vec<Option<u32>>,
    candidates: usize,
}

/// What was kept of an image's candidates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kept {
    /// Its place among them.
    pub place: usize,
    /// Of the asked class.
    pub probability: f32,
}

impl Rejection {
    /// For images of `used`, indices of the model's `classes`, with as many `candidates` each.
    ///
    /// Errors: the probe was fitted to other features, or does not know a class.
    pub fn new(
        network: Box<dyn FeatureNetwork>,
        probe: Probe,
        classes: &Classes,
        used: &[u32],
        candidates: usize,
    ) -> Result<Self> {
        probe.check(&*network)?;
        probe.classes_of(classes, used)?;
        let of = |class: &Class| probe.classes.index_of(&class.wnid);
        Ok(Self {
            classes: classes.iter().map(of).collect(),
            network,
            probe,
            candidates: candidates.max(1),
        })
    }

    /// N.
    pub fn candidates(&self) -> usize {
        self.candidates
    }

    /// Everything that decides which candidate is kept.
    pub fn identity(&self) -> Value {
        json!({
            "candidates": self.candidates,
            "network": self.network.weights_hash(),
            "preprocess": self.network.preprocess(),
            "probe": self.probe.hash,
        })
    }

    /// The numbers of the samples that are candidates for image `number`.
    pub fn numbers(&self, number: u64) -> std::ops::Range<u64> {
        let n = self.candidates as u64;
        number * n..(number + 1) * n
    }

    /// The best of `images`, candidates of one image, for class `label`, an index of the model's;
    /// the first of equals.
    pub fn best(&self, images: &[RgbImage], label: u32) -> Result<Kept> {
        let class = self.classes.get(label as usize).copied().flatten();
        let class = class.context("a class that the probe does not know")?;
        let features = self.network.features(images)?;
        let tap = Output::Pool2048.name();
        let place = self.network.taps().iter().position(|t| t.name == tap);
        let rows = place.and_then(|place| features.get(place));
        let rows = rows.context("the network gives no features for the probe")?;
        check_features(rows, 0)?;
        let mut best = Kept {
            place: 0,
            probability: f32::NEG_INFINITY,
        };
        for (place, p) in self.probe.probabilities(rows)?.iter().enumerate() {
            let probability = p[class as usize];
            if probability > best.probability {
                best = Kept { place, probability };
            }
        }
        Ok(best)
    }
}
