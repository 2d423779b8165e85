//! `[data]`: which images to train on, and how they are cropped.

use serde::{Deserialize, Serialize};

/// How a training image is cropped to `image_size`. Validation and train-gen use ADM's center crop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Crop {
    /// Resize the shorter side to `image_size`, then take a random square.
    Random,
    /// Take a random area (0.08..1) and aspect ratio (3/4..4/3), then resize.
    RandomResized,
    /// ADM's center crop.
    Center,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Folders, tar shards, or globs of these.
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
