//! `rdpm export`: runs to a bundle, the single file that sampling, encoding and other programs
//! need.

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::Context;
use crate::error::{Result, usage};
use crate::model::tokenizer::of_decoder;
use crate::ops::finite;
use crate::store::bundle::{Bundle, Tensors};
use crate::store::digest;
use crate::store::hub;
use crate::store::model::{self, Weights};

/// The stage's key in a bundle's metrics and provenance.
const TRAIN_VAE: &str = "train_vae";

/// Write a run's model to one .safetensors file (a bundle)
#[derive(Debug, clap::Args)]
#[command(
    after_help = "With --gen, the tokenizer is the one that run was trained on; --vae RUN takes another decoder of the same codes (loss.decoder_only)."
)]
pub struct Args {
    /// The tokenizer: a train-vae run, one of its checkpoints, or a bundle
    #[arg(long, value_name = "RUN", required_unless_present_any = ["generator", "dequantize"])]
    vae: Option<PathBuf>,
    /// The generator: a train-gen run or one of its checkpoints
    #[arg(long = "gen", value_name = "RUN", required_unless_present_any = ["vae", "dequantize"])]
    generator: Option<PathBuf>,
    /// Write this bundle again in f32, as other programs read it: 8-bit weights become s·q
    #[arg(long, value_name = "BUNDLE", conflicts_with_all = ["vae", "generator", "weights", "dtype"])]
    dequantize: Option<PathBuf>,
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
    /// f32; bf16 for half the size; int8 for a quarter: 8 bits and a scale a row. Norms, biases and
    /// the codebook stay f32
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
    Int8,
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
    let write = |path: &Path| match args.dtype {
        Dtype::F32 => bundle.write(path, false),
        Dtype::Bf16 => bundle.write(path, true),
        Dtype::Int8 => bundle.write_int8(path),
    };
    let (out, card) = match (&args.out, &args.hf) {
        (Some(out), _) => {
            write(out)?;
            (out.clone(), None)
        }
        (None, Some(folder)) => {
            let license = args.license.as_deref().unwrap_or("other");
            let kept = hub::folder::write(folder, &bundle, license, write)?;
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
    if let Some(bundle) = &args.dequantize {
        return model::load(bundle, weights);
    }
    let Some(generator) = &args.generator else {
        let vae = args.vae.as_deref().map(|path| model::load(path, weights));
        return vae.unwrap_or_else(|| Err(usage("no run is named", "--vae RUN or --gen RUN")));
    };
    let mut bundle = model::load(generator, weights)?;
    bundle.generator()?;
    if let Some(vae) = &args.vae {
        // Its decoder may be another, as loss.decoder_only trains one.
        let asked = model::load(vae, weights)?;
        if let Some(section) = asked.config.code_difference(&bundle.config) {
            return Err(usage(
                format!(
                    "{} was trained on a tokenizer with another [{section}] than {}",
                    generator.display(),
                    vae.display(),
                ),
                "leave --vae out: a train-gen run carries its own tokenizer",
            ));
        }
        let asked_hash = hash_of_codes(&asked.tokenizer)?;
        let trained_on = hash_of_codes(&bundle.tokenizer)?;
        if asked_hash != trained_on {
            return Err(usage(
                format!(
                    "{} was not trained on the tokenizer of {} (SHA-256 without the decoder \
                     {trained_on:.12}… and {asked_hash:.12}…)",
                    generator.display(),
                    vae.display(),
                ),
                "leave --vae out: a train-gen run carries its own tokenizer",
            ));
        }
        bundle.tokenizer = asked.tokenizer;
        bundle.config.loss = asked.config.loss;
        bundle.config.train_vae = asked.config.train_vae;
        for (to, from) in [
            (&mut bundle.metrics, &asked.metrics),
            (&mut bundle.provenance, &asked.provenance),
        ] {
            if let (Some(to), Some(from)) = (to.as_object_mut(), from.get(TRAIN_VAE)) {
                to.insert(TRAIN_VAE.to_string(), from.clone());
            }
        }
    }
    Ok(bundle)
}

/// The SHA-256 of the tensors that make codes of images.
fn hash_of_codes(tokenizer: &Tensors) -> Result<String> {
    let tensors = (tokenizer.iter()).filter(|(name, _)| !of_decoder(name));
    digest::of_tensors(&tensors.map(|(n, t)| (n.clone(), t.clone())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::error::report;
    use crate::rng::{Purpose, Stream};
    use crate::store::safetensors::Reader;
    use candle_core::{Device, Tensor};
    use clap::Parser;

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
        // Another decoder for the same codes.
        let mut finished = Bundle::read(whole.as_ref())?;
        let name = "decoder.conv_out.weight";
        let tensor = Tensor::full(3f32, (4, 8), &Device::Cpu)?;
        finished.tokenizer.insert(name.to_string(), tensor.clone());
        finished.generator = None;
        finished.metrics = serde_json::json!({"train_vae": {"psnr": 30.5}});
        finished.write(other.as_ref(), false)?;
        export(&["--gen", &whole, "--vae", &other, "--out", &out])?;
        let read = Bundle::read(out.as_ref())?;
        assert!(read.generator.is_some());
        assert_eq!(
            read.tokenizer[name].to_vec2::<f32>()?,
            tensor.to_vec2::<f32>()?
        );
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
    fn eight_bits_take_a_quarter_and_are_dequantized_by_name() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
        let (whole, small, again) = (path("whole"), path("small"), path("again"));
        let mut values = vec![0f32; 128 * 64];
        Stream::new(1, Purpose::Init, 0, 0).fill_normal(&mut values);
        let tensor = Tensor::from_vec(values, (128, 64), &Device::Cpu)?;
        let tensors = Tensors::from([("w".to_string(), tensor)]);
        Bundle::new(Config::load(Some("demo"), &[])?, tensors).write(whole.as_ref(), false)?;
        export(&["--vae", &whole, "--out", &small, "--dtype", "int8"])?;
        let bytes = |path: &str| std::fs::metadata(path).map(|m| m.len());
        // The header grows by the scales' entry.
        let saved = bytes(&whole)? - bytes(&small)?;
        assert!(saved.abs_diff(128 * 64 * 3 - 128 * 4) < 128, "{saved}");
        export(&["--dequantize", &small, "--out", &again])?;
        let header = Reader::open(again.as_ref())?.header()?;
        assert_eq!(header.metadata["format"], "rdpm-bundle/1");
        let names: Vec<&String> = header.tensors.keys().collect();
        assert_eq!(names, ["tokenizer.w"]);
        let hash = |path: &str| Bundle::read(path.as_ref())?.tokenizer_hash();
        assert_eq!(hash(&again)?, hash(&small)?);
        assert_ne!(hash(&again)?, hash(&whole)?);
        for other in [["--vae", &whole], ["--dtype", "int8"], ["--weights", "raw"]] {
            let line = [&["--dequantize", &small, "--out", &again][..], &other].concat();
            assert!(export(&line).is_err(), "{other:?}");
        }
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
