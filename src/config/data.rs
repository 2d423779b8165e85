//! `[data]`: which images, and how they are cut.

use serde::{Deserialize, Serialize};

/// How a training image is cut to `image_size`. Validation and train-gen use ADM's centre crop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Crop {
    /// Shorter side to `image_size`, then a random square.
    Random,
    /// A random area (0.08..1) and aspect (3/4..4/3), resized.
    RandomResized,
    /// ADM's centre crop.
    Center,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Folders, tar shards or globs of them.
    pub train: Vec<String>,
    pub val: Vec<String>,
    /// Height and width of the square images.
    pub image_size: usize,
    pub crop: Crop,
    pub flip: bool,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            train: Vec::new(),
            val: Vec::new(),
            image_size: 256,
            crop: Crop::Random,
            flip: true,
        }
    }
}
