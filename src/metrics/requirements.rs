//! What an evaluation needs from its two sides, checked before anything is computed.

use super::features::FeatureNetwork;
use super::inception::{self, Output};
use super::kid::Subsets;
use super::options::{KID_SUBSET_SIZE, Metric, Options, PR_REFERENCE};
use super::resize::Preprocess;
use super::side::lacks;
use super::stats_file::Statistics;
use super::{fid_infinity, frechet, precision_recall};
use crate::error::{Result, hinted, usage};

/// What is known of a side without its features.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The name in errors.
    pub path: &'a str,
    /// Number of images that exist or will be drawn.
    pub images: Option<usize>,
    /// Width and height.
    pub size: Option<(u32, u32)>,
    pub statistics: Option<&'a Statistics>,
}

impl Options {
    /// Errors: a requested metric cannot be computed from these sides, or would compare
    /// incomparable features.
    pub fn check(
        &self,
        networks: &[Box<dyn FeatureNetwork>],
        samples: Facts,
        reference: Option<Facts>,
    ) -> Result<()> {
        let frechet = [Metric::Fid, Metric::Sfid];
        if self.interval
            && samples.statistics.is_some()
            && frechet.iter().any(|metric| self.wants(*metric))
        {
            return Err(usage(
                format!(
                    "--interval: {} holds statistics, from which no group of samples can be left out",
                    samples.path
                ),
                "leave out --interval, or name the samples' images; the reference may be statistics",
            ));
        }
        samples.check(self, self.needs_sample_images(), networks)?;
        if let Some(reference) = reference {
            reference.check(self, self.needs_reference_images(), networks)?;
            same_size(samples, reference)?;
        }
        self.check_covariance(samples, self.save_statistics)?;
        if let Some(reference) = reference {
            self.check_covariance(reference, false)?;
        }
        match samples.images {
            Some(count) => self.check_counts(count, reference.and_then(|r| r.images)),
            None => Ok(()),
        }
    }

    /// Errors: too few images for the covariance that a Fréchet distance, or the `saved`
    /// statistics, need.
    fn check_covariance(&self, side: Facts, saved: bool) -> Result<()> {
        let wants = |metrics: &[Metric]| metrics.iter().any(|metric| self.wants(*metric));
        let of_inception = wants(&[Metric::Fid, Metric::Sfid, Metric::FidInf]) || saved;
        let wanted = wants(&[Metric::FdDinov2, Metric::ClipFid])
            || (of_inception && side.statistics.is_none());
        match side.images {
            Some(count) if wanted && count < 2 => Err(hinted(
                format!(
                    "{}: {count} image: there is no covariance of fewer than two",
                    side.path
                ),
                "name more images",
            )),
            _ => Ok(()),
        }
    }

    /// Errors: too few images for a metric.
    fn check_counts(&self, samples: usize, reference: Option<usize>) -> Result<()> {
        if self.interval && samples < 2 * frechet::GROUPS {
            return Err(usage(
                format!(
                    "--interval: {samples} samples are too few for {} groups",
                    frechet::GROUPS
                ),
                "leave out --interval, or name more samples",
            ));
        }
        if self.wants(Metric::FidInf) {
            fid_infinity::check(samples)?;
        }
        let Some(reference) = reference else {
            return Ok(());
        };
        if self.wants(Metric::Pr) {
            precision_recall::check(reference.min(PR_REFERENCE), samples)?;
        }
        match self.wants(Metric::Kid) {
            true => self.subsets(samples, reference).check(samples, reference),
            false => Ok(()),
        }
    }

    /// The subsets of KID.
    pub fn subsets(&self, samples: usize, reference: usize) -> Subsets {
        let size = self.kid_subset_size;
        Subsets {
            count: self.kid_subsets,
            size: size.unwrap_or(KID_SUBSET_SIZE.min(samples.min(reference))),
            seed: self.seed,
        }
    }
}

impl Facts<'_> {
    fn check(
        &self,
        options: &Options,
        needs_images: bool,
        networks: &[Box<dyn FeatureNetwork>],
    ) -> Result<()> {
        if needs_images && self.images.is_none() {
            return Err(lacks(self.path, "images"));
        }
        let network = networks.iter().find(|n| n.name() == inception::NAME);
        let (Some(statistics), Some(network)) = (self.statistics, network) else {
            return Ok(());
        };
        let taps = network.taps().iter();
        let compared: Vec<_> = taps.filter(|tap| options.compares(tap.name)).collect();
        // The side may be a file of which only the images are used.
        if !compared.is_empty() {
            self.check_maker(statistics, &**network)?;
        }
        for tap in compared {
            let width = match tap.name == Output::Spatial.name() {
                false => statistics.fid.width(),
                true => match &statistics.spatial {
                    Some(spatial) => spatial.width(),
                    None => {
                        return Err(lacks(self.path, "statistics of spatial features (`mu_s`)"));
                    }
                },
            };
            if width != tap.width {
                return Err(usage(
                    format!(
                        "{}: statistics of {width} dimensions, the features `{}` have {}",
                        self.path, tap.name, tap.width
                    ),
                    "set --dims to the statistics' dimensions",
                ));
            }
        }
        Ok(())
    }

    /// Refuses statistics that may come from any resize, because neither this program nor ADM made
    /// them.
    pub fn check_says_resize(&self) -> Result<()> {
        match self.statistics {
            Some(Statistics {
                made_by: None,
                spatial: None,
                ..
            }) => Err(usage(
                format!("{} does not say by which resize it was made", self.path),
                "name it with --preprocess: pytorch-fid for that tool's statistics, clean for clean-fid's, else adm",
            )),
            _ => Ok(()),
        }
    }

    /// Refuses statistics made with another network, other weights or another resize.
    fn check_maker(&self, statistics: &Statistics, network: &dyn FeatureNetwork) -> Result<()> {
        let mismatch = |what: &str, found: &str, expected: &str| {
            Err(hinted(
                format!(
                    "{}: made with {what} {found}, this evaluation uses {expected}",
                    self.path
                ),
                "metrics of different features or resizes cannot be compared: make the statistics again with --save-stats, or change --preprocess or --weights",
            ))
        };
        let preprocess = network.preprocess();
        match &statistics.made_by {
            Some(made_by) if made_by.network != network.name() => {
                mismatch("the network", &made_by.network, network.name())
            }
            Some(made_by) if made_by.preprocess != preprocess => {
                mismatch("--preprocess", &made_by.preprocess, preprocess)
            }
            Some(made_by) if made_by.weights != network.weights_hash() => {
                mismatch("weights", &made_by.weights, network.weights_hash())
            }
            None if statistics.spatial.is_some() && preprocess != Preprocess::Adm.name() => {
                mismatch("--preprocess", Preprocess::Adm.name(), preprocess)
            }
            _ => Ok(()),
        }
    }
}

/// Refuses to compare sets of images of different sizes.
fn same_size(a: Facts, b: Facts) -> Result<()> {
    match (a.size, b.size) {
        (Some(one), Some(other)) if one != other => Err(hinted(
            format!(
                "{} holds images of {}×{}, {} of {}×{}",
                a.path, one.0, one.1, b.path, other.0, other.1
            ),
            "compare images of one size: --crop SIZE resizes folders and shards as ADM does",
        )),
        _ => Ok(()),
    }
}
