//! Typed configuration: one validated value, saved beside the weights. The defaults are the paper's
//! run.
//!
//! A file sets only what differs from the defaults; it may be empty:
//! ```toml
//! [quantizer]
//! steps = 5
//! ```
//! Layers, each overriding the previous: defaults, preset or file, `--set section.key=value`.

mod data;
mod generator;
mod layers;
mod loss;
mod presets;
mod sample;
mod tokenizer;
mod train;
mod validate;

pub use data::{Crop, DataConfig};
pub use generator::{GeneratorConfig, HeadInit, Rope, Timesteps};
pub use loss::{LossConfig, Perceptual};
pub use presets::PRESETS;
pub use sample::{CfgSchedule, SampleConfig, is_guidance, is_temperature};
pub use tokenizer::{QuantizerConfig, Reduction, ScheduleConfig, ScheduleKind, TokenizerConfig};
pub use train::{ComputeType, LrSchedule, TrainConfig};

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Context, Result, hinted};

/// Everything that decides what a run computes. Seed, threads and device belong to the command
/// line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub data: DataConfig,
    pub tokenizer: TokenizerConfig,
    pub quantizer: QuantizerConfig,
    pub schedule: ScheduleConfig,
    pub loss: LossConfig,
    pub generator: GeneratorConfig,
    pub train_vae: TrainConfig,
    pub train_gen: TrainConfig,
    pub sample: SampleConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data: DataConfig::default(),
            tokenizer: TokenizerConfig::default(),
            quantizer: QuantizerConfig::default(),
            schedule: ScheduleConfig::default(),
            loss: LossConfig::default(),
            generator: GeneratorConfig::default(),
            train_vae: TrainConfig::vae(),
            train_gen: TrainConfig::generator(),
            sample: SampleConfig::default(),
        }
    }
}

impl Config {
    /// Defaults, then `source` (a file's path or, if no such file exists, a preset's name), then
    /// every `section.key=value` of `sets`; validated.
    ///
    /// Errors name the key, the value found and the values allowed; for an unknown name they
    /// suggest the nearest.
    pub fn load(source: Option<&str>, sets: &[String]) -> Result<Self> {
        let mut layers = layers::Layers::of_defaults()?;
        if let Some(source) = source {
            let text = presets::text(source)?;
            layers.add(&text).with_context(|| source.to_string())?;
        }
        for set in sets {
            layers.set(set).with_context(|| format!("--set {set}"))?;
        }
        layers.finish()
    }

    /// The configuration a run saved: `config.toml`.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|e| hinted(format!("{name}: {e}"), "a run folder holds a config.toml"))?;
        Self::from_toml(&text).context(name)
    }

    /// From TOML; missing keys have their defaults, so that files of older versions can be read.
    pub fn from_toml(text: &str) -> Result<Self> {
        let mut layers = layers::Layers::of_defaults()?;
        layers.add(text)?;
        layers.finish()
    }

    /// From the JSON of a bundle's metadata; missing keys have their defaults.
    pub fn from_json(text: &str) -> Result<Self> {
        let table: toml::Table =
            serde_json::from_str(text).context("the configuration is not valid JSON")?;
        let mut layers = layers::Layers::of_defaults()?;
        layers.add_table(table)?;
        layers.finish()
    }

    /// All keys with their values, as a run saves them.
    pub fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string(self)?)
    }

    /// Compact JSON, as stored in a bundle.
    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string(self)?)
    }

    /// Refuses a configuration that no run could start with.
    pub fn validate(&self) -> Result<()> {
        validate::validate(self)
    }

    /// The first section on which the codes of an image hang and in which `other` differs.
    pub fn code_difference(&self, other: &Self) -> Option<&'static str> {
        let of_quantizer = |q: &QuantizerConfig| (q.codebook_size, q.steps, q.bias);
        let differs = [
            ("data", self.data.image_size != other.data.image_size),
            ("tokenizer", self.tokenizer != other.tokenizer),
            (
                "quantizer",
                of_quantizer(&self.quantizer) != of_quantizer(&other.quantizer),
            ),
            ("schedule", self.schedule != other.schedule),
        ];
        let found = differs.iter().find(|(_, differs)| *differs);
        found.map(|(section, _)| *section)
    }

    /// Pixels per latent position, along one side: patch · 2^(levels − 1).
    pub fn downsampling(&self) -> usize {
        self.tokenizer.downsampling()
    }

    /// Number of latent positions along one side: h = w.
    pub fn grid(&self) -> usize {
        self.data.image_size / self.downsampling()
    }

    /// N = h·w
    pub fn tokens(&self) -> usize {
        self.grid() * self.grid()
    }
}

#[cfg(test)]
mod tests;
