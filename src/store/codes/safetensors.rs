//! Codes as safetensors: `codes` [N,T,h,w], `labels` [N], `names` (UTF-8, separated by zero bytes),
//! `mirrored` [N], `noise` [N,T,d,h,w], `latents` [N,d,h,w]; the metadata holds the tokenizer's
//! hash, the codebook's size and the seed.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::Dtype;

use super::rows::Rows;
use super::{Codes, FORMAT, Origin, damaged};
use crate::error::{Result, hinted};
use crate::store::bundle::check_format;
use crate::store::safetensors::{self as file, Metadata, Raw, Reader};

/// Between names: no file's name contains it.
const SEPARATOR: char = '\0';

pub(super) fn write(codes: &Codes, path: &Path) -> Result<()> {
    let (t, n, h, w) = codes.codes.dims4()?;
    let rows = Rows::of(codes)?;
    let d = rows.shape.embed_dim;
    let raw = |dtype, shape: &[usize], bytes: Vec<u8>| Raw {
        dtype,
        shape: shape.to_vec(),
        bytes: bytes.into(),
    };
    let narrow = codes.origin.codebook_size <= 1 << 16;
    let values = rows.codes.iter();
    let packed: Vec<u8> = match narrow {
        true => values.flat_map(|c| (*c as u16).to_le_bytes()).collect(),
        false => values.flat_map(|c| c.to_le_bytes()).collect(),
    };
    let dtype = if narrow { Dtype::U16 } else { Dtype::U32 };
    let mut entries = vec![("codes", raw(dtype, &[n, t, h, w], packed))];
    if !codes.labels.is_empty() {
        let labels = codes.labels.iter();
        let bytes = labels.flat_map(|l| i64::from(*l).to_le_bytes()).collect();
        entries.push(("labels", raw(Dtype::I64, &[codes.labels.len()], bytes)));
    }
    if !codes.names.is_empty() {
        let bytes = codes.names.join(&SEPARATOR.to_string()).into_bytes();
        entries.push(("names", raw(Dtype::U8, &[bytes.len()], bytes)));
    }
    if !codes.mirrored.is_empty() {
        let bytes = codes.mirrored.iter().map(|m| u8::from(*m)).collect();
        let count = codes.mirrored.len();
        entries.push(("mirrored", raw(Dtype::BOOL, &[count], bytes)));
    }
    let floats = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect();
    if let Some(noise) = &rows.noise {
        entries.push(("noise", raw(Dtype::F32, &[n, t, d, h, w], floats(noise))));
    }
    if let Some(latents) = &rows.latents {
        // Not `n` alone: what does not fit the codes is written as it is, and refused when read.
        let shape = codes.latents.as_ref().map(|v| v.permute((0, 3, 1, 2)));
        let shape = shape.transpose()?.map_or(vec![], |v| v.dims().to_vec());
        entries.push(("latents", raw(Dtype::F32, &shape, floats(latents))));
    }
    let origin = &codes.origin;
    let metadata = Metadata::from([
        ("format".to_string(), FORMAT.to_string()),
        ("tokenizer".to_string(), origin.tokenizer.clone()),
        (
            "codebook_size".to_string(),
            origin.codebook_size.to_string(),
        ),
        ("seed".to_string(), origin.seed.to_string()),
    ]);
    file::write_views(path, entries, &metadata)
}

pub(super) fn read(path: &Path) -> Result<Codes> {
    let reader = Reader::open(path)?;
    let metadata = reader.header()?.metadata;
    let format = metadata.get("format").map(String::as_str);
    check_format(path, format, FORMAT)?;
    let field = |key: &str| -> Result<u64> {
        let value = metadata.get(key).and_then(|v| v.parse().ok());
        value.ok_or_else(|| damaged(path, format!("its metadata has no number `{key}`")))
    };
    let origin = Origin {
        tokenizer: metadata.get("tokenizer").cloned().unwrap_or_default(),
        codebook_size: field("codebook_size")? as usize,
        seed: field("seed")?,
    };
    let optional = |name: &str| -> Result<Option<Tensor>> {
        let raw = reader.raw(name)?;
        raw.map(|raw| tensor(path, name, &raw)).transpose()
    };
    let labels = match optional("labels")? {
        Some(labels) => labels.to_dtype(DType::U32)?.flatten_all()?.to_vec1()?,
        None => Vec::new(),
    };
    let noise = optional("noise")?.map(|noise| noise_in_memory(&noise));
    let latents =
        optional("latents")?.map(|v| v.permute((0, 2, 3, 1)).and_then(|v| v.contiguous()));
    let rank = |_| damaged(path, "its noise or latents have another rank".into());
    let bytes = |name: &str, expected: Dtype| -> Result<Option<Vec<u8>>> {
        match reader.raw(name)? {
            Some(raw) if raw.dtype == expected => Ok(Some(raw.bytes.to_vec())),
            Some(raw) => Err(damaged(path, format!("`{name}` has type {:?}", raw.dtype))),
            None => Ok(None),
        }
    };
    let names = match bytes("names", Dtype::U8)? {
        Some(bytes) => String::from_utf8(bytes)
            .map_err(|_| damaged(path, "its names are not UTF-8".into()))?
            .split(SEPARATOR)
            .map(str::to_string)
            .collect(),
        None => Vec::new(),
    };
    let mirrored = bytes("mirrored", Dtype::BOOL)?.unwrap_or_default();
    Ok(Codes {
        codes: read_codes(path, &reader)?,
        labels,
        names,
        mirrored: mirrored.iter().map(|byte| *byte != 0).collect(),
        noise: noise.transpose().map_err(rank)?,
        latents: latents.transpose().map_err(rank)?,
        origin,
    })
}

/// The noise [T,N,h,w,d] of a codes file or of any safetensors file with `noise` [N,T,d,h,w].
pub fn read_noise(path: &Path) -> Result<Tensor> {
    let reader = Reader::open(path)?;
    let raw = reader.raw("noise")?.ok_or_else(|| {
        hinted(
            format!("{} holds no tensor `noise`", path.display()),
            "it is [N,T,d,h,w] f32, as `rdpm encode --save-noise` writes it",
        )
    })?;
    noise_in_memory(&tensor(path, "noise", &raw)?)
        .map_err(|_| damaged(path, format!("`noise` has shape {:?}", raw.shape)))
}

/// [N,T,d,h,w] -> [T,N,h,w,d]
fn noise_in_memory(noise: &Tensor) -> candle_core::Result<Tensor> {
    noise.permute((1, 0, 3, 4, 2))?.contiguous()
}

fn read_codes(path: &Path, reader: &Reader) -> Result<Tensor> {
    let raw = reader
        .raw("codes")?
        .ok_or_else(|| damaged(path, "it holds no tensor `codes`".into()))?;
    let values: Vec<u32> = match raw.dtype {
        Dtype::U16 => {
            let (pairs, _) = raw.bytes.as_chunks();
            let code = |pair: &[u8; 2]| u32::from(u16::from_le_bytes(*pair));
            pairs.iter().map(code).collect()
        }
        Dtype::U32 => {
            let (words, _) = raw.bytes.as_chunks();
            words.iter().map(|word| u32::from_le_bytes(*word)).collect()
        }
        other => return Err(damaged(path, format!("its codes have type {other:?}"))),
    };
    let Ok([n, t, h, w]) = <[usize; 4]>::try_from(raw.shape.as_slice()) else {
        return Err(damaged(
            path,
            format!("its codes have shape {:?}", raw.shape),
        ));
    };
    let codes = Tensor::from_vec(values, (n, t, h, w), &Device::Cpu)?;
    Ok(codes.permute((1, 0, 2, 3))?.contiguous()?) // [T,N,h,w]
}

fn tensor(path: &Path, name: &str, raw: &Raw<'_>) -> Result<Tensor> {
    let dtype = match (name, raw.dtype) {
        ("labels", Dtype::I64) => DType::I64,
        ("labels", Dtype::U32) => DType::U32,
        ("noise" | "latents", Dtype::F32) => DType::F32,
        (_, other) => return Err(damaged(path, format!("`{name}` has type {other:?}"))),
    };
    Ok(Tensor::from_raw_buffer(
        &raw.bytes,
        dtype,
        &raw.shape,
        &Device::Cpu,
    )?)
}
