//! Codes files (docs/design.md, section 3): what `encode` writes and `decode` reads.
//!
//! In the file, PyTorch's order: `codes` u16 or u32 [N,T,h,w], `labels` i64 [N], `noise` f32
//! [N,T,d,h,w], `latents` f32 [N,d,h,w]; `__metadata__` holds the tokenizer's hash and the seed. In
//! memory, channels last: codes u32 [T,N,h,w], noise [T,N,h,w,d], latents [N,h,w,d].

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::Dtype;

use super::bundle::check_format;
use super::safetensors::{self as file, Metadata, Raw, Reader};
use crate::error::{Result, hinted};

/// The version this program writes and reads.
pub const FORMAT: &str = "rdpm-codes/1";

/// The codes of N images.
#[derive(Debug, Clone)]
pub struct Codes {
    /// u32 [T,N,h,w]
    pub codes: Tensor,
    /// N labels, or none if the images had none.
    pub labels: Vec<u32>,
    /// ε_t, f32 [T,N,h,w,d]
    pub noise: Option<Tensor>,
    /// v before the noise, f32 [N,h,w,d]
    pub latents: Option<Tensor>,
    /// [`super::bundle::Bundle::tokenizer_hash`] of the tokenizer that made them.
    pub tokenizer: String,
    /// Codebook size K: every code is below it.
    pub codebook_size: usize,
    pub seed: u64,
}

impl Codes {
    /// Writes codes as u16 if K allows it.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut entries = vec![("codes", self.packed_codes()?)];
        if !self.labels.is_empty() {
            let bytes: Vec<u8> = self
                .labels
                .iter()
                .flat_map(|label| i64::from(*label).to_le_bytes())
                .collect();
            let raw = Raw {
                dtype: Dtype::I64,
                shape: vec![self.labels.len()],
                bytes: bytes.into(),
            };
            entries.push(("labels", raw));
        }
        if let Some(noise) = &self.noise {
            // [T,N,h,w,d] -> [N,T,d,h,w]
            entries.push(("noise", raw_f32(&noise.permute((1, 0, 4, 2, 3))?)?));
        }
        if let Some(latents) = &self.latents {
            // [N,h,w,d] -> [N,d,h,w]
            entries.push(("latents", raw_f32(&latents.permute((0, 3, 1, 2))?)?));
        }
        let metadata = Metadata::from([
            ("format".to_string(), FORMAT.to_string()),
            ("tokenizer".to_string(), self.tokenizer.clone()),
            ("codebook_size".to_string(), self.codebook_size.to_string()),
            ("seed".to_string(), self.seed.to_string()),
        ]);
        file::write_views(path, entries, &metadata)
    }

    fn packed_codes(&self) -> Result<Raw<'static>> {
        let codes = self.codes.permute((1, 0, 2, 3))?.contiguous()?; // [N,T,h,w]
        let shape = codes.dims().to_vec();
        let values = codes.flatten_all()?.to_vec1::<u32>()?;
        let narrow = self.codebook_size <= 1 << 16;
        let (dtype, bytes): (_, Vec<u8>) = if narrow {
            let bytes = values.iter().flat_map(|c| (*c as u16).to_le_bytes());
            (Dtype::U16, bytes.collect())
        } else {
            let bytes = values.iter().flat_map(|c| c.to_le_bytes());
            (Dtype::U32, bytes.collect())
        };
        Ok(Raw {
            dtype,
            shape,
            bytes: bytes.into(),
        })
    }

    /// Errors: not a codes file, or of an unknown version; inconsistent shapes; a code outside the
    /// codebook.
    pub fn read(path: &Path) -> Result<Self> {
        let reader = Reader::open(path)?;
        let header = reader.header()?;
        check_format(
            path,
            header.metadata.get("format").map(String::as_str),
            FORMAT,
        )?;
        let field = |key: &str| -> Result<u64> {
            let value = header.metadata.get(key).and_then(|v| v.parse().ok());
            value.ok_or_else(|| damaged(path, format!("its metadata has no number `{key}`")))
        };
        let (codebook_size, seed) = (field("codebook_size")? as usize, field("seed")?);
        let codes = read_codes(path, &reader, codebook_size)?;
        let (t, n, h, w) = codes.dims4()?;
        let mut floats = BTreeMap::new();
        for name in ["labels", "noise", "latents"] {
            if let Some(raw) = reader.raw(name)? {
                floats.insert(name, tensor(path, name, &raw)?);
            }
        }
        let labels = match floats.get("labels") {
            Some(labels) => labels.to_dtype(DType::U32)?.flatten_all()?.to_vec1()?,
            None => Vec::new(),
        };
        if !labels.is_empty() && labels.len() != n {
            return Err(damaged(
                path,
                format!("{} labels for {n} images", labels.len()),
            ));
        }
        let noise = floats.get("noise").map(noise_in_memory).transpose()?;
        if let Some(noise) = &noise
            && noise.dims()[..4] != [t, n, h, w]
        {
            return Err(damaged(path, "its noise does not fit its codes".into()));
        }
        let latents = floats
            .get("latents")
            .map(|v| v.permute((0, 2, 3, 1))?.contiguous())
            .transpose()?;
        if let Some(latents) = &latents
            && latents.dims()[..3] != [n, h, w]
        {
            return Err(damaged(path, "its latents do not fit its codes".into()));
        }
        Ok(Self {
            codes,
            labels,
            noise,
            latents,
            tokenizer: header
                .metadata
                .get("tokenizer")
                .cloned()
                .unwrap_or_default(),
            codebook_size,
            seed,
        })
    }
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

fn read_codes(path: &Path, reader: &Reader, codebook_size: usize) -> Result<Tensor> {
    let raw = reader
        .raw("codes")?
        .ok_or_else(|| damaged(path, "it holds no tensor `codes`".into()))?;
    let values: Vec<u32> = match raw.dtype {
        Dtype::U16 => raw
            .bytes
            .as_chunks()
            .0
            .iter()
            .map(|b| u32::from(u16::from_le_bytes(*b)))
            .collect(),
        Dtype::U32 => raw
            .bytes
            .as_chunks()
            .0
            .iter()
            .map(|b| u32::from_le_bytes(*b))
            .collect(),
        other => return Err(damaged(path, format!("its codes have type {other:?}"))),
    };
    if let Some(code) = values.iter().find(|c| **c as usize >= codebook_size) {
        return Err(damaged(
            path,
            format!("code {code} in a codebook of {codebook_size}"),
        ));
    }
    let shape = <[usize; 4]>::try_from(raw.shape.as_slice());
    let Some([n, t, h, w]) = shape.ok().filter(|sizes| !sizes.contains(&0)) else {
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

fn raw_f32(tensor: &Tensor) -> Result<Raw<'static>> {
    let values = tensor.flatten_all()?.to_vec1::<f32>()?;
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    Ok(Raw {
        dtype: Dtype::F32,
        shape: tensor.dims().to_vec(),
        bytes: bytes.into(),
    })
}

fn damaged(path: &Path, what: String) -> crate::error::Error {
    hinted(
        format!("{} is not a valid codes file: {what}", path.display()),
        "`rdpm encode` writes codes: [N,T,h,w] u16 or u32, labels [N] i64, noise [N,T,d,h,w], latents [N,d,h,w]",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::report;

    fn codes(codebook_size: usize) -> Result<Codes> {
        let device = Device::Cpu;
        let (t, n, h, w, d) = (2usize, 3usize, 2usize, 4usize, 5usize);
        let count = |n: usize| Tensor::arange(0f32, n as f32, &device);
        Ok(Codes {
            codes: Tensor::arange(0u32, (t * n * h * w) as u32, &device)?.reshape((t, n, h, w))?,
            labels: vec![7, 0, 9],
            noise: Some(count(t * n * h * w * d)?.reshape((t, n, h, w, d))?),
            latents: Some(count(n * h * w * d)?.reshape((n, h, w, d))?),
            tokenizer: "abc".into(),
            codebook_size,
            seed: u64::MAX,
        })
    }

    fn same(a: &Option<Tensor>, b: &Option<Tensor>) -> Result<bool> {
        let flat = |t: &Option<Tensor>| -> Result<Vec<f32>> {
            Ok(t.as_ref().expect("there").flatten_all()?.to_vec1()?)
        };
        Ok(flat(a)? == flat(b)?)
    }

    #[test]
    fn codes_are_read_as_they_were_written_in_both_widths() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("codes.safetensors");
        for (codebook_size, dtype) in [(1 << 16, Dtype::U16), ((1 << 16) + 1, Dtype::U32)] {
            let written = codes(codebook_size)?;
            written.write(&path)?;
            let header = Reader::open(&path)?.header()?;
            assert_eq!(header.tensors["codes"], (dtype, vec![3, 2, 2, 4]));
            assert_eq!(header.tensors["noise"].1, [3, 2, 5, 2, 4]);
            assert_eq!(header.tensors["latents"].1, [3, 5, 2, 4]);
            let read = Codes::read(&path)?;
            assert_eq!(
                read.codes.flatten_all()?.to_vec1::<u32>()?,
                written.codes.flatten_all()?.to_vec1::<u32>()?
            );
            assert_eq!(read.labels, written.labels);
            assert_eq!((read.seed, read.tokenizer.as_str()), (u64::MAX, "abc"));
            assert!(same(&read.noise, &written.noise)?);
            assert!(same(&read.latents, &written.latents)?);
            assert!(same(&Some(read_noise(&path)?), &written.noise)?);
        }
        Ok(())
    }

    #[test]
    fn labels_noise_and_latents_may_be_absent() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("codes.safetensors");
        let bare = Codes {
            labels: Vec::new(),
            noise: None,
            latents: None,
            ..codes(4096)?
        };
        bare.write(&path)?;
        let read = Codes::read(&path)?;
        assert!(read.labels.is_empty() && read.noise.is_none() && read.latents.is_none());
        let (text, _) = report(&read_noise(&path).unwrap_err());
        assert!(text.contains("no tensor `noise`"), "{text}");
        Ok(())
    }

    #[test]
    fn codes_that_cannot_be_decoded_are_refused() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("codes.safetensors");
        for (codes, words) in [
            (
                Codes {
                    codebook_size: 47,
                    ..codes(4096)?
                },
                "code 47 in a codebook of 47",
            ),
            (
                Codes {
                    labels: vec![1],
                    ..codes(4096)?
                },
                "1 labels for 3 images",
            ),
            (
                Codes {
                    latents: Some(Tensor::zeros((3, 2, 5, 4), DType::F32, &Device::Cpu)?),
                    ..codes(4096)?
                },
                "its latents do not fit",
            ),
            (
                Codes {
                    codes: Tensor::zeros((1, 3, 0, 5), DType::U32, &Device::Cpu)?,
                    latents: None,
                    noise: None,
                    ..codes(4096)?
                },
                "its codes have shape [3, 1, 0, 5]",
            ),
        ] {
            codes.write(&path)?;
            let (text, code) = report(&Codes::read(&path).unwrap_err());
            assert!(text.contains(words), "{text}");
            assert_eq!(code, 1);
        }
        file::write(&path, &BTreeMap::new(), &Metadata::new())?;
        assert!(Codes::read(&path).is_err());
        Ok(())
    }
}
