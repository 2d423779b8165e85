//! Bundles (docs/design.md, section 3): a tokenizer and, optionally, a generator in one safetensors
//! file, with everything that is needed to use them.
//!
//! Tensors are under `tokenizer.` and `generator.` with their own names and PyTorch's shapes;
//! `__metadata__` holds `format`, `config`, `classes`, `metrics` and `provenance`, the last four as
//! JSON.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Tensor};
use serde_json::{Value, json};

use super::digest;
use super::safetensors::{self, Metadata, Reader};
use crate::config::Config;
use crate::error::{Context, Result, hinted, usage};

/// The version this program writes and reads.
pub const FORMAT: &str = "rdpm-bundle/1";

const TOKENIZER: &str = "tokenizer.";
const GENERATOR: &str = "generator.";

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// A model and its metadata. Tensors are f32 on the CPU.
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
        let reader = Reader::open(path)?;
        let metadata = reader.header()?.metadata;
        check_format(path, metadata.get("format").map(String::as_str), FORMAT)?;
        let text = |key: &str| metadata.get(key).map_or("null", String::as_str);
        let json = |key: &str| -> Result<Value> {
            serde_json::from_str(text(key))
                .with_context(|| format!("{}: `{key}` is not JSON", path.display()))
        };
        let config = Config::from_json(text("config"))
            .with_context(|| format!("{}: `config`", path.display()))?;
        let (mut tokenizer, mut generator) = (Tensors::new(), Tensors::new());
        for (name, tensor) in reader.tensors()? {
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
            part.insert(name.to_string(), tensor.to_dtype(DType::F32)?);
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
        let parts = [
            (TOKENIZER, Some(&self.tokenizer)),
            (GENERATOR, self.generator.as_ref()),
        ];
        let mut tensors = Tensors::new();
        for (prefix, part) in parts {
            for (name, tensor) in part.into_iter().flatten() {
                let half = bf16 && tensor.rank() >= 2 && !name.starts_with("quantize.");
                let dtype = if half { DType::BF16 } else { DType::F32 };
                tensors.insert(format!("{prefix}{name}"), tensor.to_dtype(dtype)?);
            }
        }
        let metadata = Metadata::from([
            ("format".to_string(), FORMAT.to_string()),
            ("config".to_string(), self.config.to_json()?),
            ("classes".to_string(), self.classes.to_string()),
            ("metrics".to_string(), self.metrics.to_string()),
            ("provenance".to_string(), self.provenance.to_string()),
        ]);
        safetensors::write(path, &tensors, &metadata)
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

/// What a file of ours is, by the word before the version in its `format`, and where it is used.
const KINDS: [(&str, &str, &str); 3] = [
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::report;
    use candle_core::Device;

    fn bundle() -> Result<Bundle> {
        let tensor = |shape: &[usize]| Tensor::full(1.0f32 + 1.0 / 256.0, shape, &Device::Cpu);
        let tokenizer = Tensors::from([
            ("encoder.conv_in.weight".into(), tensor(&[4, 3, 3, 3])?),
            ("encoder.conv_in.bias".into(), tensor(&[4])?),
            ("quantize.embedding.weight".into(), tensor(&[16, 2])?),
        ]);
        Ok(Bundle {
            classes: json!([{"index": 0, "wnid": "n01", "words": "tench, Tinca tinca"}]),
            metrics: json!({"train_vae": {"psnr": 25.5}}),
            provenance: json!({"version": "0.1.0"}),
            generator: Some(Tensors::from([("head.bias".into(), tensor(&[16])?)])),
            ..Bundle::new(Config::load(Some("demo"), &[])?, tokenizer)
        })
    }

    #[test]
    fn other_files_are_named_for_what_they_are() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("a.safetensors");
        let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 123\n";
        let mut tar = vec![0; 1024];
        tar[257..262].copy_from_slice(b"ustar");
        for (bytes, words) in [
            (&lfs[..], "is a git-LFS pointer"),
            (b"<html><body>404</body></html>", "is an HTML page"),
            (b"\x1f\x8b\x08\0\0\0\0\0\0\x03", "is gzip-compressed"),
            (&tar, "is a tar archive"),
        ] {
            std::fs::write(&path, bytes)?;
            let (text, code) = report(&Bundle::read(&path).unwrap_err());
            assert!(text.contains(words) && text.contains("\nhint: "), "{text}");
            assert!(text.contains("a.safetensors") && code == 1, "{text}");
        }
        Ok(())
    }

    #[test]
    fn a_bundle_is_read_as_it_was_written() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("a.safetensors");
        let written = bundle()?;
        written.write(&path, false)?;
        let read = Bundle::read(&path)?;
        assert_eq!(read.config, written.config);
        assert_eq!(read.classes, written.classes);
        assert_eq!(read.metrics, written.metrics);
        assert_eq!(read.provenance, written.provenance);
        assert_eq!(read.tokenizer_hash()?, written.tokenizer_hash()?);
        assert_eq!(read.generator()?.len(), 1);
        Ok(())
    }

    #[test]
    fn bf16_halves_matrices_and_keeps_codebook_and_vectors() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("a.safetensors");
        bundle()?.write(&path, true)?;
        let types: Vec<String> = Reader::open(&path)?
            .header()?
            .tensors
            .into_iter()
            .map(|(name, (dtype, _))| format!("{name} {dtype:?}"))
            .collect();
        assert_eq!(
            types,
            [
                "generator.head.bias F32",
                "tokenizer.encoder.conv_in.bias F32",
                "tokenizer.encoder.conv_in.weight BF16",
                "tokenizer.quantize.embedding.weight F32",
            ]
        );
        let read = Bundle::read(&path)?;
        assert!(read.tokenizer.values().all(|t| t.dtype() == DType::F32));
        Ok(())
    }

    #[test]
    fn a_tokenizer_alone_is_valid_and_cannot_sample() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("a.safetensors");
        let whole = bundle()?;
        Bundle::new(whole.config, whole.tokenizer).write(&path, false)?;
        let (text, code) = report(&Bundle::read(&path)?.generator().unwrap_err());
        assert!(text.contains("a tokenizer only"), "{text}");
        assert_eq!(code, 2);
        Ok(())
    }

    #[test]
    fn other_formats_are_refused_by_name() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("a.safetensors");
        let refusal = |metadata: &[(&str, &str)]| -> Result<String> {
            let metadata = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string()));
            safetensors::write(&path, &Tensors::new(), &metadata.collect())?;
            Ok(report(&Bundle::read(&path).unwrap_err()).0)
        };
        assert!(refusal(&[])?.contains("no file of rdpm's own; expected a bundle"));
        assert!(refusal(&[("format", "rdpm-bundle/9")])?.contains("found rdpm-bundle/9"));
        assert!(refusal(&[("format", "rdpm-codes/1")])?.contains("is a file of codes"));
        assert!(refusal(&[("format", "rdpm-latents/1")])?.contains("is a cache of latents"));
        assert!(refusal(&[("format", "rdpm-other/1")])?.contains("another kind"));
        let text = refusal(&[
            ("format", FORMAT),
            ("config", "{\"quantizer\":{\"stepz\":1}}"),
        ])?;
        assert!(
            text.contains("stepz") && text.contains("a.safetensors"),
            "{text}"
        );
        Ok(())
    }
}
