//! Bundles (docs/design.md, section 3): a tokenizer and, optionally, a generator in one safetensors
//! file, with everything that is needed to use them.
//!
//! Tensors are under `tokenizer.` and `generator.` with their own names and PyTorch's shapes;
//! `__metadata__` holds `format`, `config`, `classes`, `metrics` and `provenance`, the last four as
//! JSON. In `rdpm-bundle/2` large matrices and kernels are i8 with a scale a row ([`super::int8`]).

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;

use ::safetensors::Dtype;
use candle_core::{DType, Tensor};
use rayon::prelude::*;
use serde_json::{Value, json};

use super::int8::{self, Int8};
use super::safetensors::{self, Metadata, Raw, Reader};
use super::{builtin, digest};
use crate::config::Config;
use crate::error::{Context, Result, hinted, usage};

/// A bundle of floating-point numbers.
pub const FORMAT: &str = "rdpm-bundle/1";
/// A bundle with 8-bit weights.
pub const FORMAT_INT8: &str = "rdpm-bundle/2";
const FORMATS: &str = "rdpm-bundle/1 or rdpm-bundle/2";

const TOKENIZER: &str = "tokenizer.";
const GENERATOR: &str = "generator.";

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// A model and its metadata. Tensors are f32 on the CPU, whatever they are in the file.
#[derive(Debug, Clone)]
pub struct Bundle {
    pub config: Config,
    /// A list of {index, wnid, words}; empty if the images had no labels.
    pub classes: Value,
    /// The last logged metrics of each stage.
    pub metrics: Value,
    /// The runs, steps and seeds that the model comes from.
    pub provenance: Value,
    pub tokenizer: Tensors,
    pub generator: Option<Tensors>,
}

impl Bundle {
    /// A tokenizer of `config` without further metadata.
    pub fn new(config: Config, tokenizer: Tensors) -> Self {
        Self {
            config,
            classes: json!([]),
            metrics: json!({}),
            provenance: json!({}),
            tokenizer,
            generator: None,
        }
    }

    /// Errors: not a bundle; an unknown version, which is named; an invalid configuration.
    pub fn read(path: &Path) -> Result<Self> {
        Self::of(&Reader::open(path)?, path)
    }

    /// The model that is built into the program, dequantised from where it lies.
    ///
    /// Errors: there is none; the file that was built in is no bundle.
    pub fn built_in() -> Result<Self> {
        let path = Path::new(builtin::NAME);
        Self::of(&Reader::of_built_in(builtin::bytes()?, path)?, path)
    }

    fn of(reader: &Reader, path: &Path) -> Result<Self> {
        let metadata = reader.header()?.metadata;
        let format = metadata.get("format").map(String::as_str);
        if ![Some(FORMAT), Some(FORMAT_INT8)].contains(&format) {
            check_format(path, format, FORMATS)?;
        }
        let text = |key: &str| metadata.get(key).map_or("null", String::as_str);
        let json = |key: &str| -> Result<Value> {
            serde_json::from_str(text(key))
                .with_context(|| format!("{}: `{key}` is not JSON", path.display()))
        };
        let config = Config::from_json(text("config"))
            .with_context(|| format!("{}: `config`", path.display()))?;
        let (mut tokenizer, mut generator) = (Tensors::new(), Tensors::new());
        for (name, tensor) in tensors(reader, path, format == Some(FORMAT_INT8))? {
            let (part, name) = if let Some(name) = name.strip_prefix(TOKENIZER) {
                (&mut tokenizer, name)
            } else if let Some(name) = name.strip_prefix(GENERATOR) {
                (&mut generator, name)
            } else {
                return Err(hinted(
                    format!("{}: `{name}` belongs to no part", path.display()),
                    format!("names begin with {TOKENIZER} or {GENERATOR}"),
                ));
            };
            part.insert(name.to_string(), tensor);
        }
        Ok(Self {
            config,
            classes: json("classes")?,
            metrics: json("metrics")?,
            provenance: json("provenance")?,
            tokenizer,
            generator: (!generator.is_empty()).then_some(generator),
        })
    }

    /// Writes the file, completely or not at all. With `bf16`, matrices and kernels take half the
    /// space; the codebook and vectors (norms, biases) stay f32, because they are small and set the
    /// scale.
    pub fn write(&self, path: &Path, bf16: bool) -> Result<()> {
        let mut tensors = Tensors::new();
        for (prefix, name, tensor) in self.named() {
            let half = bf16 && tensor.rank() >= 2 && !name.starts_with("quantize.");
            let dtype = if half { DType::BF16 } else { DType::F32 };
            tensors.insert(format!("{prefix}{name}"), tensor.to_dtype(dtype)?);
        }
        safetensors::write(path, &tensors, &self.metadata(FORMAT)?)
    }

    /// Writes the file with large matrices and kernels in 8 bits, completely or not at all.
    ///
    /// Errors: NaN or infinity in such a tensor.
    pub fn write_int8(&self, path: &Path) -> Result<()> {
        let (mut exact, mut int8) = (Vec::new(), Vec::new());
        for (prefix, name, tensor) in self.named() {
            match int8::applies_to(name, tensor) {
                true => int8.push((format!("{prefix}{name}"), Int8::of(name, tensor)?)),
                false => exact.push((format!("{prefix}{name}"), tensor)),
            }
        }
        let exact = exact
            .into_iter()
            .map(|(name, t)| (name, Raw::from_tensor(t)));
        let int8 = int8.iter().flat_map(|(name, int8)| {
            let (values, scales) = int8.raws();
            [
                (name.clone(), values),
                (format!("{name}{}", int8::SCALE), scales),
            ]
        });
        let all: Vec<(String, Raw<'_>)> = exact.chain(int8).collect();
        let all = all.iter().map(|(name, raw)| (name.as_str(), raw.clone()));
        safetensors::write_views(path, all.collect(), &self.metadata(FORMAT_INT8)?)
    }

    /// All tensors, each with the prefix of its part and its own name.
    fn named(&self) -> impl Iterator<Item = (&'static str, &str, &Tensor)> {
        let tokenizer = self.tokenizer.iter().map(|named| (TOKENIZER, named));
        let generator = self.generator.iter().flatten();
        tokenizer
            .chain(generator.map(|named| (GENERATOR, named)))
            .map(|(prefix, (name, tensor))| (prefix, name.as_str(), tensor))
    }

    fn metadata(&self, format: &str) -> Result<Metadata> {
        Ok(Metadata::from([
            ("format".to_string(), format.to_string()),
            ("config".to_string(), self.config.to_json()?),
            ("classes".to_string(), self.classes.to_string()),
            ("metrics".to_string(), self.metrics.to_string()),
            ("provenance".to_string(), self.provenance.to_string()),
        ]))
    }

    /// The generator's tensors, or an error if there are none.
    pub fn generator(&self) -> Result<&Tensors> {
        self.generator.as_ref().ok_or_else(|| {
            usage(
                "the model has a tokenizer only: it can encode and decode, but not sample",
                "name a train-gen run, or a bundle that `rdpm export --gen RUN` wrote",
            )
        })
    }

    /// The SHA-256 of the tokenizer's tensors, which ties codes and latents to it.
    pub fn tokenizer_hash(&self) -> Result<String> {
        digest::of_tensors(&self.tokenizer)
    }
}

/// All tensors of the file at `path` in f32.
///
/// Errors: 8-bit weights without usable scales; scales without weights.
fn tensors(reader: &Reader, path: &Path, may_be_int8: bool) -> Result<Tensors> {
    let raws = reader.raws()?;
    let is_int8 = |name: &str| raws.get(name).is_some_and(|raw| raw.dtype == Dtype::I8);
    let damaged = |name: &str, what: String| {
        hinted(
            format!("{}: `{name}` {what}", path.display()),
            "the file is damaged, or another program wrote it: export it again",
        )
    };
    let read = |(name, raw): (&String, &Raw<'_>)| {
        let tensor = match (raw.dtype, name.strip_suffix(int8::SCALE)) {
            (Dtype::I8, _) if !may_be_int8 => {
                return Err(damaged(name, format!("is I8, which {FORMAT} has not")));
            }
            (Dtype::I8, _) => Int8::read(raw, raws.get(&format!("{name}{}", int8::SCALE)))
                .map_err(|what| damaged(name, what))?
                .dequantize()?,
            (_, Some(of)) if is_int8(of) => return Ok(None),
            (_, Some(of)) if may_be_int8 => {
                return Err(damaged(name, format!("scales `{of}`, which is not I8")));
            }
            _ => reader.tensor(name, raw)?.to_dtype(DType::F32)?,
        };
        Ok(Some((name.clone(), tensor)))
    };
    // Side by side: most of the time goes into pages that are touched for the first time. The error
    // of the first tensor counts, whichever thread fails first.
    let all: Vec<_> = raws.par_iter().map(read).collect();
    let found = all.into_iter().filter_map(Result::transpose);
    found.collect()
}

/// What a file of ours is, by the word before the version in its `format`, and where it is used.
const KINDS: [(&str, &str, &str); 5] = [
    (
        "rdpm-bundle",
        "a bundle",
        "it is a model: `rdpm sample` draws from one with a generator, others encode and decode",
    ),
    (
        "rdpm-codes",
        "a file of codes",
        "`rdpm decode` makes images of it",
    ),
    (
        "rdpm-latents",
        "a cache of latents",
        "`rdpm train-gen` reads it as its cache, and makes one where there is none",
    ),
    (
        "rdpm-latents-part",
        "a part of a cache of latents",
        "`rdpm train-gen` reads the folder that it is in as its cache",
    ),
    (
        "rdpm-probe",
        "a probe",
        "`rdpm eval-fid --probe` judges samples with it",
    ),
];

/// What a file of ours is, and where it is used; none for other files.
pub fn kind_of(path: &Path) -> Option<(&'static str, &'static str)> {
    let header = Reader::open(path).ok()?.header().ok()?;
    let word = header.metadata.get("format")?.split('/').next()?;
    let kind = KINDS.iter().find(|(name, ..)| *name == word)?;
    Some((kind.1, kind.2))
}

/// Refuses a file of another format or version by name.
pub fn check_format(path: &Path, found: Option<&str>, expected: &str) -> Result<()> {
    let word = |format: &str| format.split('/').next().unwrap_or_default().to_string();
    let kind = |format: &str| KINDS.iter().find(|(name, ..)| *name == word(format));
    let path = path.display();
    let wanted = kind(expected).map_or(expected, |(_, name, _)| name);
    let Some(found) = found else {
        return Err(hinted(
            format!("{path}: weights, and no file of rdpm's own; expected {wanted}"),
            "`rdpm inspect` shows what it is; of a run, name the folder",
        ));
    };
    if found == expected {
        return Ok(());
    }
    if word(found) == word(expected) {
        return Err(hinted(
            format!("{path}: expected format {expected}, found {found}"),
            "a newer rdpm wrote it: use that one",
        ));
    }
    let (name, hint) = match kind(found) {
        Some((_, name, hint)) => (*name, *hint),
        None => ("another kind of file", "`rdpm inspect` shows which"),
    };
    Err(hinted(
        format!("{path} is {name} ({found}); expected {wanted}"),
        hint,
    ))
}
