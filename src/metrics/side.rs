//! One side of a comparison, samples or reference, as statistics, as features, or as both.
//!
//! An ADM reference file holds statistics of the whole set and 10,000 of its images. FID and sFID
//! are computed from the former, precision and recall from the latter, as in ADM's evaluator.

use super::collect::{SetFeatures, TapFeatures};
use super::features::Rows;
use super::inception::Output;
use super::report::Set;
use super::statistics::{Gaussian, GroupedMoments};
use super::stats_file::Statistics;
use crate::data::Classes;
use crate::error::{Error, Result, hinted};

/// What the images of a side should show.
pub struct Labels {
    pub classes: Classes,
    /// An index of `classes` per image.
    pub indices: Vec<u32>,
}

pub struct Side {
    pub set: Set,
    /// Always Inception's.
    pub statistics: Option<Statistics>,
    /// The index of Inception among the networks, if it is one of them.
    pub inception: Option<usize>,
    pub features: Option<SetFeatures>,
    /// Of the images behind `features`, where they have labels.
    pub labels: Option<Labels>,
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

    /// Number of images behind [`Side::gaussian`], if known.
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

    fn lacks(&self, what: &str) -> Error {
        lacks(&self.set.path, what)
    }
}

/// The error that `path` lacks `what`, which a metric needs.
pub(super) fn lacks(path: &str, what: &str) -> Error {
    hinted(
        format!("{path}: it has no {what}"),
        "leave out the metrics that need them (--metrics), or name a set of images",
    )
}
