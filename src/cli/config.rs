//! The options that choose a configuration, the same for train-vae and train-gen.

use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};

use crate::config::Config;
use crate::data::printed;
use crate::error::{Context, Result};

/// Where a run's configuration comes from; later options override earlier ones.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Configuration")]
pub struct ConfigArgs {
    /// A TOML file, or a preset: smoke, demo, tiny-imagenet-64, imagenet256-vae, -d12, -d16, -d20
    /// [default: the paper's run]
    #[arg(long, value_name = "FILE|PRESET")]
    pub config: Option<String>,
    /// Change one value, as in --set quantizer.steps=5 or --set tokenizer.ch_mult=1,2,4
    /// (repeatable)
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub sets: Vec<String>,
    /// Training images: a folder with a sub-folder for each class, a tar shard or a glob
    /// (repeatable; replaces data.train)
    #[arg(long, value_name = "PATH", value_parser = data_path())]
    pub data: Vec<String>,
    /// Validation images, in the same forms (replaces data.val)
    #[arg(long, value_name = "PATH", value_parser = data_path())]
    pub val: Vec<String>,
}

impl ConfigArgs {
    /// The validated configuration with absolute file paths, so that a saved configuration works
    /// from any folder.
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
        let (data, loss) = (&mut config.data, &mut config.loss);
        for path in data.train.iter_mut().chain(&mut data.val) {
            *path = printed(whole(path)?.as_os_str());
        }
        for file in loss.vgg.iter_mut().chain(&mut loss.lpips) {
            *file = absolute(file)?;
        }
        Ok(config)
    }
}

/// Takes the path of data as [`crate::data::open`] does, whatever its bytes are.
pub fn data_path() -> impl TypedValueParser<Value = String> {
    OsStringValueParser::new().map(|path| printed(&path))
}

fn whole(path: &str) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("`{path}` as a path"))
}

/// An absolute path, without following links.
pub fn absolute(path: &str) -> Result<String> {
    match whole(path)?.into_os_string().into_string() {
        Ok(whole) => Ok(whole),
        Err(whole) => {
            tracing::warn!(
                "{} is not UTF-8: the run saves `{path}` as it is and can be resumed from this folder only",
                whole.display()
            );
            Ok(path.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use crate::cli::Cli;
    use clap::Parser;

    #[test]
    fn files_of_a_run_have_absolute_paths_wherever_they_were_named() -> Result<()> {
        let here = std::env::current_dir()?;
        let args = ConfigArgs {
            config: Some("smoke".into()),
            sets: vec![
                "loss.vgg=weights/vgg.pth".into(),
                "data.val=v[0-9]/*.tar".into(),
            ],
            data: vec!["data/train".into(), "./x/../*.tar".into(), "/abs".into()],
            val: Vec::new(),
        };
        let config = args.load()?;
        let whole = |path: &str| format!("{}/{path}", here.display());
        assert_eq!(
            config.data.train,
            [whole("data/train"), whole("x/../*.tar"), "/abs".into()]
        );
        assert_eq!(config.data.val, [whole("v[0-9]/*.tar")]);
        assert_eq!(config.loss.vgg, Some(whole("weights/vgg.pth")));
        assert_eq!(config.loss.lpips, None);
        Ok(())
    }

    #[test]
    fn data_may_have_a_path_that_is_not_utf_8() {
        let odd = OsStr::from_bytes(b"n\xE9d");
        for line in [
            "train-vae --val v --data",
            "train-gen --vae v --data d --val",
            "reconstruct",
            "encode",
            "eval-vae",
            "index",
            "pack --out o --size 8",
            "fit-probe",
            "fit-probe d --val",
            "bench loader",
        ] {
            let words = ["rdpm"].into_iter().chain(line.split(' ')).map(OsStr::new);
            let parsed = Cli::try_parse_from(words.chain([odd]));
            let parsed = parsed.unwrap_or_else(|error| panic!("{line}: {error}"));
            let shown = format!("{:?}", parsed.command);
            assert!(shown.contains(r#"["n\\xE9d"]"#), "{line}: {shown}");
        }
    }
}
