//! Image quality metrics: feature networks, distances between sets of features, and reports.
//!
//! A [`FeatureNetwork`] turns images into rows of numbers; a metric is a function of two sets of
//! rows. Weights, resize and number of images belong to a metric's value, and networks report them.

pub mod clip;
pub mod collect;
pub mod dinov2;
pub mod distances;
pub mod evaluate;
pub mod feature_log;
pub mod features;
pub mod fid_infinity;
pub mod frechet;
pub mod images;
pub mod inception;
pub mod inception_score;
pub mod kid;
pub mod known;
mod normalized;
pub mod options;
pub mod precision_recall;
pub mod probe;
pub mod psnr;
pub mod reconstruction;
pub mod report;
pub mod requirements;
pub mod resize;
pub mod sampled;
pub mod side;
pub mod ssim;
pub mod statistics;
pub mod stats_file;
pub mod sweep;
pub mod weights;

pub use distances::Arithmetic;
pub use features::{FeatureNetwork, Rows, Tap};
pub use frechet::Reference;
pub use images::Images;
pub use inception::{Inception, Output};
pub use psnr::psnr;
pub use resize::Preprocess;
pub use ssim::ssim;
pub use statistics::{Gaussian, GroupedMoments};
