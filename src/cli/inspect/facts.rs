//! What is known about a file or folder, as one JSON object. Every kind has `path` and `kind`, and
//! those that apply of `format`, `bytes`, `sha256`, `parameters`, `config`, `metrics`,
//! `provenance`, `classes`, `tensors`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::config::Config;
use crate::data::latent_cache;
use crate::error::{Context, Result, hinted};
use crate::metrics::images::is_npz;
use crate::store::bundle::{self, Bundle};
use crate::store::codes::{self, Codes, Format};
use crate::store::npz::Npz;
use crate::store::run::{self, CheckpointInfo, RunFolder};
use crate::store::safetensors::{Header, Reader};
use crate::store::{builtin, digest, int8, tensors};
use crate::telemetry::MetricsLog;

pub(super) type Facts = Map<String, Value>;

/// Errors: there is nothing at `path`, or it is of no known kind.
pub(super) fn of(path: &Path, each_tensor: bool) -> Result<Facts> {
    let mut facts = Facts::new();
    facts.insert("path".into(), json!(path.display().to_string()));
    if path == Path::new(builtin::NAME) {
        let bytes = builtin::bytes()?;
        facts.insert("kind".into(), json!("built-in bundle"));
        facts.insert("bytes".into(), json!(bytes.len()));
        facts.insert("sha256".into(), json!(digest::of_bytes(bytes)));
        let header = Reader::of_built_in(bytes, path)?.header()?;
        facts.insert("format".into(), json!(header.metadata.get("format")));
        of_bundle(Bundle::built_in()?, &header, each_tensor, &mut facts)?;
        return Ok(facts);
    }
    let found = fs::metadata(path)
        .map_err(|e| hinted(format!("cannot read {}: {e}", path.display()), ""))?;
    if found.is_dir() && Format::is_codes(path) {
        facts.insert("kind".into(), json!("codes"));
        facts.insert("format".into(), json!(codes::FORMAT));
        of_codes(&Codes::read(path)?, &mut facts)?;
    } else if let Some(set) = codes::set::manifest(path)? {
        facts.insert("kind".into(), json!("set of codes"));
        facts.extend(
            set.as_object()
                .into_iter()
                .flatten()
                .map(|(k, v)| (k.clone(), v.clone())),
        );
    } else if let Some(cache) = latent_cache::describe(path)? {
        of_latents(&cache, &mut facts);
    } else if found.is_dir() {
        if run::is_checkpoint(path) || path.join("state.json").is_file() {
            checkpoint(path, each_tensor, &mut facts)?;
        } else {
            run_folder(path, each_tensor, &mut facts)?;
        }
    } else {
        file(path, each_tensor, &mut facts)?;
    }
    Ok(facts)
}

fn run_folder(path: &Path, each_tensor: bool, facts: &mut Facts) -> Result<()> {
    let run = RunFolder::open(path)?;
    facts.insert("kind".into(), json!("run"));
    if let Ok(latest) = run.latest() {
        let mut newest = Facts::new();
        checkpoint(&latest, each_tensor, &mut newest)?;
        for key in ["stage", "step", "finished", "seed", "version"] {
            facts.insert(key.into(), newest[key].clone());
        }
        facts.insert("checkpoint".into(), json!(latest.display().to_string()));
        for key in ["files", "parameters", "tensors"] {
            if let Some(value) = newest.remove(key) {
                facts.insert(key.into(), value);
            }
        }
    }
    if run.tokenizer().is_file() {
        let hash = Bundle::read(&run.tokenizer())?.tokenizer_hash()?;
        facts.insert("tokenizer_hash".into(), json!(hash));
    }
    if let Ok(classes) = fs::read_to_string(run.classes()) {
        facts.insert("classes".into(), serde_json::from_str(&classes)?);
    }
    let lines = MetricsLog::read(&run.metrics()).unwrap_or_default();
    let last: Map<String, Value> = lines.into_iter().flatten().collect();
    facts.insert("metrics".into(), Value::Object(last));
    let config = Config::read(&run.config())?;
    facts.insert("config".into(), serde_json::to_value(config)?);
    Ok(())
}

fn checkpoint(path: &Path, each_tensor: bool, facts: &mut Facts) -> Result<()> {
    let info = CheckpointInfo::read(path)?;
    facts.insert("kind".into(), json!("checkpoint"));
    facts.insert("format".into(), json!(info.format));
    facts.insert("stage".into(), json!(info.stage));
    facts.insert("step".into(), json!(info.step));
    facts.insert("finished".into(), json!(info.finished));
    facts.insert("seed".into(), json!(info.seed));
    facts.insert("version".into(), json!(info.version));
    let mut files = Map::new();
    for name in ["model", "ema", "optimizer"].map(|n| format!("{n}.safetensors")) {
        let hash = digest::sha256(&path.join(&name))?;
        let whole = info.sha256.get(&name).map(|expected| *expected == hash);
        files.insert(name, json!({ "sha256": hash, "as_recorded": whole }));
    }
    facts.insert("files".into(), Value::Object(files));
    let header = Reader::open(&path.join("model.safetensors"))?.header()?;
    weights(&header, 1, each_tensor, facts);
    Ok(())
}

fn file(path: &Path, each_tensor: bool, facts: &mut Facts) -> Result<()> {
    if is_npz(path) {
        return npz(path, facts);
    }
    let bytes = fs::metadata(path)?.len();
    if Format::is_codes(path) {
        let codes = Codes::read(path)?;
        facts.insert("kind".into(), json!("codes"));
        facts.insert("format".into(), json!(codes::FORMAT));
        facts.insert("bytes".into(), json!(bytes));
        return of_codes(&codes, facts);
    }
    let reader = match Reader::open(path) {
        Ok(reader) => reader,
        Err(refusal) => return pth(path, each_tensor, facts).map_err(|e| other(e, refusal, path)),
    };
    let header = reader.header()?;
    let format = header.metadata.get("format").cloned().unwrap_or_default();
    let (kind, depth) = match format.split_once('/').map_or("", |(kind, _)| kind) {
        "rdpm-bundle" => ("bundle", 2),
        "rdpm-codes" => ("codes", 1),
        "rdpm-latents" => ("latent cache", 1),
        "rdpm-latents-part" => ("part of a latent cache", 1),
        "rdpm-probe" => ("probe", 1),
        _ => ("weights", 1),
    };
    facts.insert("kind".into(), json!(kind));
    facts.insert("format".into(), json!(format));
    facts.insert("bytes".into(), json!(bytes));
    facts.insert("sha256".into(), json!(digest::sha256(path)?));
    match format.as_str() {
        bundle::FORMAT | bundle::FORMAT_INT8 => {
            of_bundle(Bundle::read(path)?, &header, each_tensor, facts)?;
        }
        codes::FORMAT => {
            of_codes(&Codes::read(path)?, facts)?;
            tensor_list(&header, facts);
        }
        _ if kind == "weights" => {
            facts.insert("metadata".into(), json!(header.metadata));
            weights(&header, depth, each_tensor, facts);
        }
        // A latent cache, or a file of a newer version of this program.
        _ => {
            facts.insert("metadata".into(), json!(header.metadata));
            tensor_list(&header, facts);
        }
    }
    Ok(())
}

fn of_bundle(bundle: Bundle, header: &Header, each_tensor: bool, facts: &mut Facts) -> Result<()> {
    let hash = bundle.tokenizer_hash()?;
    facts.insert("tokenizer_hash".into(), json!(hash));
    weights(header, 2, each_tensor, facts);
    facts.insert("classes".into(), bundle.classes);
    facts.insert("metrics".into(), bundle.metrics);
    facts.insert("provenance".into(), bundle.provenance);
    facts.insert("config".into(), serde_json::to_value(bundle.config)?);
    Ok(())
}

fn of_codes(codes: &Codes, facts: &mut Facts) -> Result<()> {
    let (t, n, h, w) = codes.codes.dims4()?;
    facts.insert("images".into(), json!(n));
    facts.insert("steps".into(), json!(t));
    facts.insert("grid".into(), json!([h, w]));
    facts.insert("codebook_size".into(), json!(codes.origin.codebook_size));
    facts.insert("labels".into(), json!(!codes.labels.is_empty()));
    facts.insert("names".into(), json!(!codes.names.is_empty()));
    facts.insert("mirror_images".into(), json!(!codes.mirrored.is_empty()));
    facts.insert("noise".into(), json!(codes.noise.is_some()));
    facts.insert("latents".into(), json!(codes.latents.is_some()));
    facts.insert("seed".into(), json!(codes.origin.seed));
    facts.insert("tokenizer_hash".into(), json!(codes.origin.tokenizer));
    Ok(())
}

/// A folder of latents, which a training run made.
fn of_latents(cache: &latent_cache::Description, facts: &mut Facts) {
    facts.insert("kind".into(), json!("latent cache"));
    facts.insert("bytes".into(), json!(cache.bytes));
    facts.insert("parts".into(), json!(cache.parts));
    facts.insert("finished".into(), json!(cache.made.is_some()));
    if let Some(made) = &cache.made {
        let (meta, facts) = (&made.meta, facts);
        facts.insert("format".into(), json!(latent_cache::FORMAT));
        facts.insert("parts".into(), json!(made.parts));
        facts.insert("images".into(), json!(made.images));
        facts.insert("part_size".into(), json!(made.part_size));
        facts.insert("image_size".into(), json!(meta.image_size));
        facts.insert("latent".into(), json!(meta.shape));
        facts.insert("mirror_images".into(), json!(meta.flip));
        facts.insert("tokenizer_hash".into(), json!(meta.tokenizer));
        facts.insert("data".into(), json!(meta.data));
        facts.insert("wrong".into(), json!(made.wrong));
    }
}

/// Neither kind fits: returns the more specific of the two errors.
fn other(
    pth: crate::error::Error,
    safetensors: crate::error::Error,
    path: &Path,
) -> crate::error::Error {
    let named = |ending: &str| path.extension().is_some_and(|e| e == ending);
    if named("safetensors") {
        safetensors
    } else {
        pth
    }
}

fn pth(path: &Path, each_tensor: bool, facts: &mut Facts) -> Result<()> {
    let found = tensors::read_typed(path)?;
    let described = found
        .into_iter()
        .map(|(name, (tensor, dtype))| (name, (dtype, tensor.dims().to_vec())))
        .collect();
    let header = Header {
        tensors: described,
        metadata: BTreeMap::new(),
    };
    facts.insert("kind".into(), json!("weights"));
    facts.insert("format".into(), json!("torch.save"));
    facts.insert("bytes".into(), json!(fs::metadata(path)?.len()));
    let hash = digest::sha256(path).context("the file was just read")?;
    facts.insert("sha256".into(), json!(hash));
    weights(&header, 1, each_tensor, facts);
    Ok(())
}

/// Images with their labels, or statistics of images.
fn npz(path: &Path, facts: &mut Facts) -> Result<()> {
    let mut archive = Npz::open(path)?;
    let mut arrays = Map::new();
    for name in archive.names() {
        let (descriptor, shape) = archive.describe(&name)?;
        let entry = json!({ "dtype": dtype(&descriptor), "shape": shape });
        arrays.insert(name, entry);
    }
    facts.insert("kind".into(), json!("arrays"));
    facts.insert("format".into(), json!("npz"));
    facts.insert("bytes".into(), json!(fs::metadata(path)?.len()));
    facts.insert("sha256".into(), json!(digest::sha256(path)?));
    facts.insert("tensors".into(), Value::Object(arrays));
    Ok(())
}

/// NumPy's dtype in the notation of the other formats: `<f4` is F32. Other than plain numbers stay
/// as they are.
fn dtype(descriptor: &str) -> String {
    let numbers = |kind: &str| {
        let bytes: usize = descriptor.get(2..)?.parse().ok()?;
        Some(format!("{kind}{}", 8 * bytes))
    };
    let named = match descriptor.get(1..2) {
        Some("f") => numbers("F"),
        Some("i") => numbers("I"),
        Some("u") => numbers("U"),
        Some("c") => numbers("C"),
        Some("b") => Some("BOOL".to_string()),
        _ => None,
    };
    named.unwrap_or_else(|| descriptor.to_string())
}

/// Parameter counts by part: the first `depth` components of a name.
fn weights(header: &Header, depth: usize, each_tensor: bool, facts: &mut Facts) {
    let mut parts: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for (name, (_, shape)) in &header.tensors {
        if is_scale(name, header) {
            continue;
        }
        let part: Vec<&str> = name.split('.').take(depth).collect();
        let entry = parts.entry(part.join(".")).or_default();
        entry.0 += 1;
        entry.1 += shape.iter().product::<usize>() as u64;
    }
    let parts: Map<String, Value> = parts
        .into_iter()
        .map(|(part, (tensors, parameters))| {
            (
                part,
                json!({ "tensors": tensors, "parameters": parameters }),
            )
        })
        .collect();
    facts.insert("parameters".into(), Value::Object(parts));
    if each_tensor {
        tensor_list(header, facts);
    }
}

/// Whether `name` holds the scales of 8-bit weights, which are no parameters.
fn is_scale(name: &str, header: &Header) -> bool {
    let scaled = name.strip_suffix(int8::SCALE);
    let scaled = scaled.and_then(|name| header.tensors.get(name));
    scaled.is_some_and(|(dtype, _)| *dtype == Dtype::I8)
}

fn tensor_list(header: &Header, facts: &mut Facts) {
    let list: Map<String, Value> = header
        .tensors
        .iter()
        .map(|(name, (dtype, shape))| {
            let entry = json!({ "dtype": format!("{dtype:?}"), "shape": shape });
            (name.clone(), entry)
        })
        .collect();
    facts.insert("tensors".into(), Value::Object(list));
}

#[cfg(test)]
mod tests;
