//! A model as a repository of a hub: `model.safetensors` (a bundle), `config.json` and the model
//! card `README.md`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::MODEL;
use crate::error::{Context, Result, hinted};
use crate::store::atomic;
use crate::store::bundle::{Bundle, Tensors};

/// The configuration, whose presence makes a folder a repository of a model.
const CONFIG: &str = "config.json";
const CARD: &str = "README.md";

/// What `model_type` in [`CONFIG`] is.
const MODEL_TYPE: &str = "rdpm";

/// The model's file in `folder`, if that is a repository.
///
/// Errors: it is one of another kind of model.
pub fn model_in(folder: &Path) -> Result<Option<PathBuf>> {
    let path = folder.join(CONFIG);
    let model = folder.join(MODEL);
    if !path.is_file() || !model.is_file() {
        return Ok(None);
    }
    let text = fs::read(&path).with_context(|| format!("could not read {}", path.display()))?;
    let config: Value = serde_json::from_slice(&text).unwrap_or_default();
    match config["model_type"].as_str() {
        Some(MODEL_TYPE) => Ok(Some(model)),
        other => Err(hinted(
            format!(
                "{}: a model of type {}, expected {MODEL_TYPE}",
                path.display(),
                other.unwrap_or("unknown")
            ),
            "name a folder that `rdpm export --hf` wrote",
        )),
    }
}

/// Writes the files into `folder`, the model by `write_model`; a card that is there already stays.
/// Returns whether one was.
pub fn write(
    folder: &Path,
    bundle: &Bundle,
    license: &str,
    write_model: impl FnOnce(&Path) -> Result<()>,
) -> Result<bool> {
    fs::create_dir_all(folder)
        .with_context(|| format!("could not make the folder {}", folder.display()))?;
    write_model(&folder.join(MODEL))?;
    let config = json!({
        "model_type": MODEL_TYPE,
        "library_name": "rdpm",
        "id2label": labels(bundle),
        "tokenizer_hash": bundle.tokenizer_hash()?,
        "config": bundle.config,
    });
    let config = serde_json::to_string_pretty(&config)? + "\n";
    atomic::write_file(&folder.join(CONFIG), config.as_bytes())?;
    let path = folder.join(CARD);
    let is_there = path.exists();
    if !is_there {
        let name = fs::canonicalize(folder)?;
        let name = name.file_name().unwrap_or_default().to_string_lossy();
        atomic::write_file(&path, card(bundle, license, &name)?.as_bytes())?;
    }
    Ok(is_there)
}

/// The words of every class by its number.
fn labels(bundle: &Bundle) -> BTreeMap<u64, String> {
    let classes = bundle.classes.as_array().into_iter().flatten();
    classes
        .filter_map(|class| {
            let words = class["words"].as_str().filter(|words| !words.is_empty());
            let words = words.or(class["wnid"].as_str())?;
            Some((class["index"].as_u64()?, words.to_string()))
        })
        .collect()
}

fn millions(tensors: &Tensors) -> String {
    let count: usize = tensors.values().map(|tensor| tensor.elem_count()).sum();
    format!("{:.1} M parameters", count as f64 / 1e6)
}

fn card(bundle: &Bundle, license: &str, name: &str) -> Result<String> {
    let config = &bundle.config;
    let (size, side) = (config.data.image_size, config.grid());
    let classes = labels(bundle).len();
    let (task, generator) = match &bundle.generator {
        Some(tensors) => (
            "pipeline_tag: unconditional-image-generation\n",
            format!("| generator | {} |\n", millions(tensors)),
        ),
        None => ("", String::new()),
    };
    let what = match (&bundle.generator, classes) {
        (None, _) => "An image tokenizer".to_string(),
        (Some(_), 0 | 1) => "An image generator".to_string(),
        (Some(_), classes) => format!("An image generator of {classes} classes"),
    };
    let mut text = format!(
        "---\nlicense: {license}\nlibrary_name: rdpm\n{task}tags:\n- rdpm\n- image-generation\n\
         - vector-quantization\n- arxiv:2412.18390\n---\n\n# {name}\n\n{what}: a Recurrent \
         Diffusion Probabilistic Model ([arXiv 2412.18390](https://arxiv.org/abs/2412.18390)), \
         trained with `rdpm` {}.\n\n| | |\n|---|---|\n| images | {size}×{size} |\n| codes | {} \
         maps of {side}×{side} out of {} |\n| tokenizer | {} |\n{generator}\n## Use\n\n",
        env!("CARGO_PKG_VERSION"),
        config.quantizer.steps,
        config.quantizer.codebook_size,
        millions(&bundle.tokenizer),
    );
    let place = format!("hf://OWNER/{name}");
    if bundle.generator.is_some() {
        writeln!(
            text,
            "```sh\nrdpm sample --model {place} --class all --num 16 --out samples.png\n```\n"
        )?;
    } else {
        writeln!(
            text,
            "```sh\nrdpm reconstruct IMAGES --model {place} --out reconstructions.png\n```\n"
        )?;
    }
    let call = match bundle.generator {
        Some(_) => "images = model.sample([0, 1], seed=0)  # [2,3,H,W] in [-1,1]",
        None => "codes = model.encode(images)  # images [B,3,H,W] in [-1,1] to [B,T,h,w]",
    };
    writeln!(
        text,
        "In PyTorch, from a download of this repository:\n\n```python\nimport rdpm\n\nmodel = \
         rdpm.load(\"{name}\")\n{call}\n```\n"
    )?;
    table(&mut text, "Metrics", &bundle.metrics)?;
    table(&mut text, "Training", &bundle.provenance)?;
    Ok(text)
}

/// A section with a table of every stage's values, if there are any.
fn table(text: &mut String, title: &str, values: &Value) -> std::fmt::Result {
    let stages = values.as_object().into_iter().flatten();
    let mut rows = Vec::new();
    for (stage, values) in stages {
        match values.as_object() {
            Some(values) => rows.extend(
                values
                    .iter()
                    .filter(|(_, value)| !value.is_object() && !value.is_array())
                    .map(|(key, value)| (format!("{}: {key}", stage.replace('_', "-")), value)),
            ),
            None => rows.push((stage.clone(), values)),
        }
    }
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(text, "## {title}\n\n| | |\n|---|---|")?;
    for (key, value) in rows {
        let shown = match (value.as_f64(), value.as_str()) {
            (Some(number), _) if number.fract() != 0.0 => format!("{number:.4}"),
            (_, Some(word)) => word.to_string(),
            _ => value.to_string(),
        };
        writeln!(text, "| {key} | {shown} |")?;
    }
    writeln!(text)
}
