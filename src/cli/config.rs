//! The options that choose a configuration, the same for train-vae and train-gen.

use crate::config::Config;
use crate::error::Result;

/// Where a run's configuration comes from; later options lie over earlier ones.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Configuration")]
pub struct ConfigArgs {
    /// A TOML file, or a preset: smoke, demo, tiny-imagenet-64, imagenet256-vae, -d12, -d16, -d20
    /// [default: the paper's run]
    #[arg(long, value_name = "FILE|PRESET")]
    pub config: Option<String>,
    /// Change one value, as in --set quantizer.steps=5 or --set tokenizer.ch_mult=1,2,4 (repeatable)
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub sets: Vec<String>,
    /// Training images: a folder, tar shard or glob (repeatable; replaces data.train)
    #[arg(long, value_name = "PATH")]
    pub data: Vec<String>,
    /// Validation images, in the same forms (replaces data.val)
    #[arg(long, value_name = "PATH")]
    pub val: Vec<String>,
}

impl ConfigArgs {
    /// The validated configuration.
    pub fn load(&self) -> Result<Config> {
        let mut config = Config::load(self.config.as_deref(), &self.sets)?;
        for (asked, target) in [
            (&self.data, &mut config.data.train),
            (&self.val, &mut config.data.val),
        ] {
            if !asked.is_empty() {
                target.clone_from(asked);
            }
        }
        Ok(config)
    }
}
