//! One side of a comparison: the samples or the reference, as statistics, as features, or as both.
//!
//! An ADM reference file holds statistics of the whole set and 10,000 of its images: FID and sFID are computed from
//! the former, precision and recall from the latter, as its evaluator does.

use super::collect::{SetFeatures, TapFeatures};
use super::features::{FeatureNetwork, Rows};
use super::inception::Output;
use super::report::Set;
use super::resize::Preprocess;
use super::statistics::{Gaussian, GroupedMoments};
use super::stats_file::Statistics;
use crate::error::{Result, hinted};

pub struct Side {
    pub set: Set,
    /// Inception's, always.
    pub statistics: Option<Statistics>,
    /// Inception's place among the networks, where it is one of them.
    pub inception: Option<usize>,
    pub features: Option<SetFeatures>,
}

impl Side {
    /// The distribution of the tap `tap` of network number `network`.
    pub fn gaussian(&self, network: usize, tap: &str) -> Result<Gaussian> {
        match self.statistics_of(network) {
            Some(known) if tap == Output::Spatial.name() => {
                let spatial = known.spatial.clone();
                spatial.ok_or_else(|| self.lacks("statistics of spatial features (`mu_s`)"))
            }
            Some(known) => Ok(known.fid.clone()),
            None => self.tap(network, tap)?.moments.gaussian(),
        }
    }

    fn statistics_of(&self, network: usize) -> Option<&Statistics> {
        let statistics = self.statistics.as_ref();
        statistics.filter(|_| self.inception == Some(network))
    }

    pub fn moments(&self, network: usize, tap: &str) -> Result<&GroupedMoments> {
        Ok(&self.tap(network, tap)?.moments)
    }

    /// The features of every image.
    pub fn rows(&self, network: usize, tap: &str) -> Result<&Rows> {
        let rows = &self.tap(network, tap)?.rows;
        rows.as_ref()
            .ok_or_else(|| self.lacks("features of every image"))
    }

    /// Images behind [`Side::gaussian`], where they are known.
    pub fn count(&self, network: usize) -> Option<usize> {
        match (self.statistics_of(network), &self.features) {
            (Some(known), _) => known.made_by.as_ref().map(|m| m.images),
            (None, features) => features.as_ref().map(|f| f.count),
        }
    }

    fn tap(&self, network: usize, name: &str) -> Result<&TapFeatures> {
        let features = self.features.as_ref();
        let tap = features.and_then(|features| features.tap(network, name));
        tap.ok_or_else(|| self.lacks("images"))
    }

    fn lacks(&self, what: &str) -> crate::error::Error {
        hinted(
            format!("{}: it has no {what}", self.set.path),
            "leave out the metrics that need them (--metrics), or name a set of images",
        )
    }

    /// Refuses statistics that another network, other weights or another resize made.
    pub fn check_network(
        &self,
        networks: &[Box<dyn FeatureNetwork>],
        preprocess: Preprocess,
    ) -> Result<()> {
        let network = self.inception.and_then(|place| networks.get(place));
        let (Some(statistics), Some(network)) = (&self.statistics, network) else {
            return Ok(());
        };
        let mismatch = |what: &str, found: &str, expected: &str| {
            Err(hinted(
                format!(
                    "{}: made with {what} {found}, this evaluation uses {expected}",
                    self.set.path
                ),
                "figures of different features or resizes cannot be compared: make the statistics again with --save-stats, or change --preprocess or --weights",
            ))
        };
        match &statistics.made_by {
            Some(made_by) if made_by.network != network.name() => {
                mismatch("the network", &made_by.network, network.name())
            }
            Some(made_by) if made_by.preprocess != network.preprocess() => {
                mismatch("--preprocess", &made_by.preprocess, network.preprocess())
            }
            Some(made_by) if made_by.weights != network.weights_hash() => {
                mismatch("weights", &made_by.weights, network.weights_hash())
            }
            None if statistics.spatial.is_some() && preprocess != Preprocess::Adm => {
                mismatch("--preprocess", "adm", preprocess.name())
            }
            None if statistics.spatial.is_none() => {
                tracing::warn!(
                    "{} does not say by which resize it was made; this evaluation uses {}",
                    self.set.path,
                    preprocess.name()
                );
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Refuses sets of images of different sizes.
    pub fn check_size(&self, other: &Side) -> Result<()> {
        match (self.size(), other.size()) {
            (Some(a), Some(b)) if a != b => Err(hinted(
                format!(
                    "{} holds images of {}×{}, {} of {}×{}",
                    self.set.path, a.0, a.1, other.set.path, b.0, b.1
                ),
                "compare images of one size: --crop SIZE resizes folders and shards as ADM does",
            )),
            _ => Ok(()),
        }
    }

    fn size(&self) -> Option<(u32, u32)> {
        let made_by = self.statistics.as_ref().and_then(|s| s.made_by.as_ref());
        let seen = self.features.as_ref().and_then(|f| f.size);
        seen.or(self.set.size).or(made_by.and_then(|m| m.size))
    }
}
