//! `rdpm export`: runs to a bundle, the single file that sampling, encoding and other programs
//! need.

use std::path::PathBuf;

use clap::ValueEnum;

use super::Context;
use crate::error::{Result, usage};
use crate::ops::finite;
use crate::store::bundle::Bundle;
use crate::store::hub;
use crate::store::model::{self, Weights};

/// Write a run's model to one .safetensors file (a bundle)
#[derive(Debug, clap::Args)]
#[command(after_help = "With --gen, the tokenizer is the one that run was trained on.")]
pub struct Args {
    /// The tokenizer: a train-vae run, one of its checkpoints, or a bundle
    #[arg(long, value_name = "RUN", required_unless_present = "generator")]
    vae: Option<PathBuf>,
    /// The generator: a train-gen run or one of its checkpoints
    #[arg(long = "gen", value_name = "RUN", required_unless_present = "vae")]
    generator: Option<PathBuf>,
    /// The file to write
    #[arg(long, value_name = "FILE", required_unless_present = "hf")]
    out: Option<PathBuf>,
    /// Write a folder as the Hugging Face hub has it instead: model.safetensors, config.json and a
    /// model card; a card that is there already stays
    #[arg(long, value_name = "DIR", conflicts_with = "out", requires = "license")]
    hf: Option<PathBuf>,
    /// The weights' licence, for the model card: mit, apache-2.0, cc-by-4.0, other, …
    #[arg(long, value_name = "ID", requires = "hf")]
    license: Option<String>,
    /// f32, or bf16 for half the size (norms, biases and the codebook stay f32)
    #[arg(long, value_enum, default_value_t)]
    dtype: Dtype,
    /// The moving average (EMA), or the weights that the optimizer left
    #[arg(long, value_enum, default_value_t)]
    weights: WeightsArg,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Dtype {
    #[default]
    F32,
    Bf16,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum WeightsArg {
    #[default]
    Ema,
    Raw,
}

impl From<WeightsArg> for Weights {
    fn from(weights: WeightsArg) -> Self {
        match weights {
            WeightsArg::Ema => Weights::Ema,
            WeightsArg::Raw => Weights::Raw,
        }
    }
}

pub fn run(args: &Args, _context: &Context) -> Result<()> {
    let bundle = assemble(args)?;
    for (name, tensor) in bundle
        .tokenizer
        .iter()
        .chain(bundle.generator.iter().flatten())
    {
        if !finite::is_finite(tensor)? {
            tracing::warn!("`{name}` holds NaN or infinity: the run has diverged");
        }
    }
    let (out, card) = match (&args.out, &args.hf) {
        (Some(out), _) => {
            bundle.write(out, args.dtype == Dtype::Bf16)?;
            (out.clone(), None)
        }
        (None, Some(folder)) => {
            let license = args.license.as_deref().unwrap_or("other");
            let kept = hub::folder::write(folder, &bundle, license, |path| {
                bundle.write(path, args.dtype == Dtype::Bf16)
            })?;
            (folder.join(hub::MODEL), Some((folder, kept)))
        }
        (None, None) => return Err(usage("nothing is written", "--out FILE or --hf DIR")),
    };
    let bytes = std::fs::metadata(&out)?.len();
    super::print(&format!(
        "{}: {} ({:.1} MB)\n",
        out.display(),
        if bundle.generator.is_some() {
            "tokenizer and generator"
        } else {
            "tokenizer"
        },
        bytes as f64 / 1e6
    ))?;
    let Some((folder, kept)) = card else {
        return Ok(());
    };
    if kept {
        tracing::info!("{}/README.md was there already and stays", folder.display());
    }
    let name = std::fs::canonicalize(folder)?;
    let name = name.file_name().unwrap_or_default().to_string_lossy();
    super::print(&format!(
        "to upload it: hf upload OWNER/{name} {} .\nto use it then: rdpm sample --model hf://OWNER/{name}\n",
        folder.display()
    ))
}

fn assemble(args: &Args) -> Result<Bundle> {
    let weights = args.weights.into();
    let Some(generator) = &args.generator else {
        let vae = args.vae.as_deref().map(|path| model::load(path, weights));
        return vae.unwrap_or_else(|| Err(usage("no run is named", "--vae RUN or --gen RUN")));
    };
    let bundle = model::load(generator, weights)?;
    bundle.generator()?;
    if let Some(vae) = &args.vae {
        let (asked, trained_on) = (
            model::load(vae, Weights::Ema)?.tokenizer_hash()?,
            bundle.tokenizer_hash()?,
        );
        if asked != trained_on {
            return Err(usage(
                format!(
                    "{} was not trained on the tokenizer of {} (SHA-256 {:.12}… and {:.12}…)",
                    generator.display(),
                    vae.display(),
                    trained_on,
                    asked
                ),
                "leave --vae out: a train-gen run carries its own tokenizer",
            ));
        }
    }
    Ok(bundle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::error::report;
    use crate::store::bundle::Tensors;
    use candle_core::{Device, Tensor};
    use clap::Parser;
    use std::path::Path;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn export(arguments: &[&str]) -> Result<()> {
        let line = Line::try_parse_from(std::iter::once(&"export").chain(arguments))?;
        run(&line.args, &Context::new(Default::default(), 1))
    }

    fn write(path: &Path, value: f32, generator: bool) -> Result<()> {
        let tensors =
            Tensors::from([("w".to_string(), Tensor::full(value, (4, 8), &Device::Cpu)?)]);
        let mut bundle = Bundle::new(Config::load(Some("demo"), &[])?, tensors.clone());
        bundle.generator = generator.then_some(tensors);
        bundle.write(path, false)
    }

    #[test]
    fn a_generator_goes_with_the_tokenizer_it_was_trained_on() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
        let (vae, other, whole, out) = (path("vae"), path("other"), path("whole"), path("out"));
        write(vae.as_ref(), 1.0, false)?;
        write(other.as_ref(), 2.0, false)?;
        write(whole.as_ref(), 1.0, true)?;
        export(&["--gen", &whole, "--vae", &vae, "--out", &out])?;
        assert!(Bundle::read(out.as_ref())?.generator.is_some());
        let wrong = export(&["--gen", &whole, "--vae", &other, "--out", &out]);
        let (text, code) = report(&wrong.unwrap_err());
        assert!(
            text.contains("was not trained on the tokenizer of"),
            "{text}"
        );
        assert_eq!(code, 2);
        let none = export(&["--gen", &vae, "--out", &out]);
        assert!(report(&none.unwrap_err()).0.contains("a tokenizer only"));
        Ok(())
    }

    #[test]
    fn bf16_takes_half_the_room() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
        let (vae, out) = (path("vae"), path("out"));
        write(vae.as_ref(), 1.0, false)?;
        export(&["--vae", &vae, "--out", &out, "--dtype", "bf16"])?;
        let bytes = |path: &str| std::fs::metadata(path).map(|m| m.len());
        assert_eq!(bytes(&vae)? - bytes(&out)?, 4 * 8 * 2);
        Ok(())
    }

    #[test]
    fn a_folder_for_the_hub_is_a_model_and_says_what_it_is() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
        let (whole, out) = (path("whole"), path("tiny"));
        write(whole.as_ref(), 1.0, true)?;
        let mut bundle = Bundle::read(whole.as_ref())?;
        bundle.classes = serde_json::json!([{"index": 0, "wnid": "n01", "words": "tench"}]);
        bundle.metrics = serde_json::json!({"train_gen": {"loss": 5.25, "step": 100}});
        bundle.write(whole.as_ref(), false)?;
        let hf = ["--gen", &whole, "--hf", &out, "--license", "cc-by-4.0"];
        export(&hf)?;
        let file = |name: &str| std::fs::read_to_string(Path::new(&out).join(name));
        let card = file("README.md")?;
        for words in [
            "---\nlicense: cc-by-4.0\n",
            "# tiny\n",
            "| train-gen: loss | 5.2500 |",
            "| train-gen: step | 100 |",
            "--model hf://OWNER/tiny",
        ] {
            assert!(card.contains(words), "{words}\n{card}");
        }
        let config: serde_json::Value = serde_json::from_str(&file("config.json")?)?;
        assert_eq!(config["id2label"]["0"], "tench");
        assert_eq!(config["config"]["data"]["image_size"], 32);
        // It is a model wherever one is named.
        let loaded = model::load(out.as_ref(), Weights::Ema)?;
        assert_eq!(loaded.tokenizer_hash()?, bundle.tokenizer_hash()?);
        assert_eq!(loaded.metrics, bundle.metrics);
        // A card that somebody wrote stays.
        std::fs::write(Path::new(&out).join("README.md"), "mine")?;
        export(&hf)?;
        assert_eq!(file("README.md")?, "mine");
        // Other people's models are not taken for ours.
        std::fs::write(
            Path::new(&out).join("config.json"),
            r#"{"model_type": "llama"}"#,
        )?;
        let (text, _) = report(&model::load(out.as_ref(), Weights::Ema).unwrap_err());
        assert!(text.contains("a model of type llama"), "{text}");
        assert!(export(&hf[..4]).is_err());
        Ok(())
    }

    #[test]
    fn export_needs_a_run_and_an_output() {
        for wrong in [&["--out", "x"][..], &["--vae", "x"], &["--gen", "x"]] {
            assert!(export(wrong).is_err());
        }
    }
}
