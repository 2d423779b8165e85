//! Bundles (docs/design.md, section 3): a tokenizer and, optionally, a generator in one safetensors
//! file, with everything that is needed to use them.
//!
//! Tensors are under `tokenizer.` and `generator.` with their own names and PyTorch's shapes;
//! `__metadata__` holds `format`, `config`, `classes`, `metrics` and `provenance`, the last four as
//! JSON. In `rdpm-bundle/2` large matrices and kernels are i8 with a scale a row ([`super::int8`]).

use std::collections::BTreeMap;
use std::path::Path;

use ::safetensors::Dtype;
use candle_core::{DType, Tensor};
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
    let mut found = Tensors::new();
    for (name, raw) in &raws {
        let tensor = match (raw.dtype, name.strip_suffix(int8::SCALE)) {
            (Dtype::I8, _) if !may_be_int8 => {
                return Err(damaged(name, format!("is I8, which {FORMAT} has not")));
            }
            (Dtype::I8, _) => Int8::read(raw, raws.get(&format!("{name}{}", int8::SCALE)))
                .map_err(|what| damaged(name, what))?
                .dequantize()?,
            (_, Some(of)) if is_int8(of) => continue,
            (_, Some(of)) if may_be_int8 => {
                return Err(damaged(name, format!("scales `{of}`, which is not I8")));
            }
            _ => reader.tensor(name, raw)?.to_dtype(DType::F32)?,
        };
        found.insert(name.clone(), tensor);
    }
    Ok(found)
}

/// What a file of ours is, by the word before the version in its `format`, and where it is used.
const KINDS: [(&str, &str, &str); 4] = [
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::report;
    use crate::rng::{Purpose, Stream};
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

    /// Large tensors of normal numbers beside small ones and those that stay exact.
    fn large() -> Result<Bundle> {
        let mut index = 0;
        let mut tensor = |shape: &[usize]| {
            let mut values = vec![0f32; shape.iter().product()];
            Stream::new(1, Purpose::Init, index, 0).fill_normal(&mut values);
            index += 1;
            Tensor::from_vec(values, shape, &Device::Cpu)
        };
        let mut bundle = bundle()?;
        bundle.tokenizer = Tensors::from([
            ("encoder.conv_in.weight".into(), tensor(&[160, 3, 3, 3])?),
            ("encoder.mid.conv1.bias".into(), tensor(&[32])?),
            ("encoder.mid.conv1.weight".into(), tensor(&[32, 32, 3, 3])?),
            ("quantize.embedding.weight".into(), tensor(&[512, 8])?),
        ]);
        let head = ("head.weight".into(), tensor(&[96, 64])?);
        bundle.generator = Some(Tensors::from([head]));
        Ok(bundle)
    }

    #[test]
    fn eight_bits_keep_names_shapes_and_all_but_a_hundredth() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let (int8, plain) = (folder.path().join("8"), folder.path().join("32"));
        let written = large()?;
        written.write_int8(&int8)?;
        let header = Reader::open(&int8)?.header()?;
        assert_eq!(header.metadata["format"], "rdpm-bundle/2");
        let types: Vec<String> = header
            .tensors
            .into_iter()
            .map(|(name, (dtype, shape))| format!("{name} {dtype:?} {shape:?}"))
            .collect();
        assert_eq!(
            types,
            [
                "generator.head.weight I8 [96, 64]",
                "generator.head.weight_scale F32 [96]",
                "tokenizer.encoder.conv_in.weight F32 [160, 3, 3, 3]",
                "tokenizer.encoder.mid.conv1.bias F32 [32]",
                "tokenizer.encoder.mid.conv1.weight I8 [32, 32, 3, 3]",
                "tokenizer.encoder.mid.conv1.weight_scale F32 [32]",
                "tokenizer.quantize.embedding.weight F32 [512, 8]",
            ]
        );
        let read = Bundle::read(&int8)?;
        assert_eq!(
            (&read.config, &read.classes, &read.metrics),
            (&written.config, &written.classes, &written.metrics)
        );
        for ((prefix, name, before), (_, same, after)) in written.named().zip(read.named()) {
            assert_eq!((name, before.dims()), (same, after.dims()));
            let norm = |x: &Tensor| x.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>();
            let error = norm(&(before - after)?)? / norm(before)?;
            let range = match int8::applies_to(name, before) {
                true => 0.004..0.008,
                false => 0.0..f32::MIN_POSITIVE,
            };
            assert!(range.contains(&error), "{prefix}{name}: {error}");
        }
        // Dequantised once, it is the same model in either file.
        read.write(&plain, false)?;
        let again = Bundle::read(&plain)?;
        assert_eq!(again.tokenizer_hash()?, read.tokenizer_hash()?);
        let (again, read) = (again.generator()?.clone(), read.generator()?);
        assert_eq!(digest::of_tensors(&again)?, digest::of_tensors(read)?);
        Ok(())
    }

    #[test]
    fn damaged_and_hostile_scales_are_refused_by_name() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("a.safetensors");
        large()?.write_int8(&path)?;
        let good = std::fs::read(&path)?;
        let reader = Reader::open(&path)?;
        let metadata = reader.header()?.metadata;
        let scales = "generator.head.weight_scale";
        // The file with one tensor replaced, or left out.
        let refusal = |name: &str, raw: Option<Raw<'static>>| -> Result<String> {
            let other = folder.path().join("b.safetensors");
            let mut raws = reader.raws()?;
            match raw {
                Some(raw) => raws.insert(name.to_string(), raw),
                None => raws.remove(name),
            };
            let views = raws.iter().map(|(name, raw)| (name.as_str(), raw.clone()));
            safetensors::write_views(&other, views.collect(), &metadata)?;
            let (text, code) = report(&Bundle::read(&other).unwrap_err());
            assert!(text.contains("b.safetensors") && code == 1, "{text}");
            assert!(text.contains("hint: "), "{text}");
            Ok(text)
        };
        let of = |dtype, shape: &[usize], numbers: &[f32]| Raw {
            dtype,
            shape: shape.to_vec(),
            bytes: numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
        };
        for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            let mut numbers = [1f32; 96];
            numbers[7] = bad;
            let text = refusal(scales, Some(of(Dtype::F32, &[96], &numbers)))?;
            let expected = format!("`generator.head.weight` has the scale {bad} in row 7");
            assert!(text.contains(&expected), "{text}");
        }
        let text = refusal(scales, Some(of(Dtype::F32, &[64], &[1.0; 64])))?;
        assert!(text.contains("expected scales F32 [96], found F32 [64]"));
        assert!(refusal(scales, None)?.contains("`generator.head.weight` is I8 and has no"));
        let text = refusal("generator.head.weight", None)?;
        assert!(text.contains("scales `generator.head.weight`, which is not I8"));
        let text = refusal(
            "generator.head.weight",
            Some(of(Dtype::F32, &[96, 1], &[1.0; 96])),
        )?;
        assert!(text.contains("which is not I8"), "{text}");
        for cut in [1, 100, good.len() / 2, good.len() - 9] {
            std::fs::write(&path, &good[..good.len() - cut])?;
            let (text, _) = report(&Bundle::read(&path).unwrap_err());
            assert!(text.contains("a.safetensors"), "{text}");
        }
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
