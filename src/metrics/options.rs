//! What an evaluation computes and how.

use clap::ValueEnum;

use super::distances::Arithmetic;
use super::frechet::GROUPS;
use super::inception::Output;
use super::statistics::Groups;

/// A metric, or a pair that is computed together.
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

/// Maximum number of reference images for precision and recall, as in ADM.
pub(super) const PR_REFERENCE: usize = 10_000;

/// torch-fidelity's defaults for KID.
pub const KID_SUBSETS: usize = 100;
pub const KID_SUBSET_SIZE: usize = 1000;

/// How metrics are computed.
#[derive(Debug, Clone)]
pub struct Options {
    pub metrics: Vec<Metric>,
    /// The features of FID.
    pub fid: Output,
    pub interval: bool,
    pub arithmetic: Arithmetic,
    pub kid_subsets: usize,
    /// If absent: torch-fidelity's default, or the number of images if that is smaller.
    pub kid_subset_size: Option<usize>,
    /// Compute FID's features even if no metric needs them.
    pub save_statistics: bool,
    /// A probe judges the samples.
    pub probe: bool,
    pub seed: u64,
}

impl Options {
    pub fn wants(&self, metric: Metric) -> bool {
        self.metrics.contains(&metric)
    }

    /// Whether a Fréchet distance uses Inception's tap `name`, or its statistics are saved.
    pub fn compares(&self, name: &str) -> bool {
        let fid = self.wants(Metric::Fid) || self.wants(Metric::FidInf) || self.save_statistics;
        (fid && name == self.fid.name())
            || (self.wants(Metric::Sfid) && name == Output::Spatial.name())
    }

    /// The Inception outputs that the metrics need.
    pub fn outputs(&self) -> Vec<Output> {
        let mut outputs = Vec::new();
        if self.compares(self.fid.name()) {
            outputs.push(self.fid);
        }
        if self.compares(Output::Spatial.name()) {
            outputs.push(Output::Spatial);
        }
        if (self.wants(Metric::Pr) || self.wants(Metric::Kid) || self.probe)
            && !outputs.contains(&Output::Pool2048)
        {
            outputs.push(Output::Pool2048);
        }
        if self.wants(Metric::Is) {
            outputs.push(Output::Logits);
        }
        outputs
    }

    /// Whether the features of every sample are needed for the tap `name`.
    pub fn keeps_sample_rows(&self, name: &str) -> bool {
        name == Output::Logits.name()
            || self.keeps_reference_rows(name)
            || (self.probe && name == Output::Pool2048.name())
            || (self.wants(Metric::FidInf) && name == self.fid.name())
    }

    pub fn keeps_reference_rows(&self, name: &str) -> bool {
        (self.wants(Metric::Pr) || self.wants(Metric::Kid)) && name == Output::Pool2048.name()
    }

    /// The groups of the samples' moments.
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

    /// Whether the reference's images are needed even if its statistics are known.
    pub fn needs_reference_images(&self) -> bool {
        let images = [Metric::Pr, Metric::Kid, Metric::FdDinov2, Metric::ClipFid];
        images.iter().any(|metric| self.wants(*metric))
    }

    /// Whether the samples' images are needed even if their statistics are known.
    pub fn needs_sample_images(&self) -> bool {
        self.needs_reference_images()
            || self.interval
            || self.probe
            || self.wants(Metric::Is)
            || self.wants(Metric::FidInf)
    }
}
