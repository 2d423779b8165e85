//! How good images are: feature networks, the distances between sets of features, and what a report says of them.
//!
//! A [`FeatureNetwork`] turns images into rows of numbers; a metric is a function of two sets of rows. Which weights,
//! which resize and how many images stand behind a number is part of the number: networks say it themselves.

pub mod features;
pub mod inception;
pub mod resize;
pub mod weights;

pub use features::{FeatureNetwork, Rows, Tap};
pub use inception::{Inception, Output};
pub use resize::Preprocess;
