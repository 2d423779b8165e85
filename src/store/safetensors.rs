//! Reading and writing `.safetensors`: named tensors and a map of strings.
//!
//! Reading maps the file and copies each tensor once. Writing is our own code, because the library
//! orders the strings by a hash map; here equal content gives equal bytes. Tensors are sorted by
//! falling width of their type, then by name.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use memmap2::Mmap;
use safetensors::View;
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView};
use serde_json::{Map, Value, json};

use super::tensors::Named;
use super::{atomic, elements, foreign};
use crate::error::{Error, Result, hinted};

/// The strings of a file's `__metadata__`.
pub type Metadata = BTreeMap<String, String>;

/// One tensor as stored in a file, for types that candle lacks (i8, u16).
#[derive(Debug, Clone)]
pub struct Raw<'a> {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Cow<'a, [u8]>,
}

impl<'a> Raw<'a> {
    /// The elements of `tensor`, row by row.
    pub fn from_tensor(tensor: &Tensor) -> Raw<'_> {
        Raw {
            dtype: View::dtype(&tensor),
            shape: tensor.dims().to_vec(),
            bytes: tensor.data(),
        }
    }

    fn of(view: &TensorView<'a>) -> Self {
        Self {
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            bytes: Cow::Borrowed(view.data()),
        }
    }
}

impl View for Raw<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// What the header says, without the data: name, type and shape of every tensor, and the metadata.
#[derive(Debug, Clone)]
pub struct Header {
    pub tensors: BTreeMap<String, (Dtype, Vec<usize>)>,
    pub metadata: Metadata,
}

enum Bytes {
    Mapped(Mmap),
    /// In the program.
    BuiltIn(&'static [u8]),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::BuiltIn(bytes) => bytes,
        }
    }
}

/// A mapped file whose header was checked against its size.
pub struct Reader {
    bytes: Bytes,
    name: String,
    path: PathBuf,
}

impl Reader {
    /// Errors: no such file; not safetensors; truncated; a header that claims more data than there
    /// is.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let failed = |e: std::io::Error| hinted(format!("cannot read {name}: {e}"), "");
        let file = File::open(path).map_err(failed)?;
        if file.metadata().map_err(failed)?.len() == 0 {
            return Err(hinted(
                format!("{name} is empty"),
                "it was not written completely",
            ));
        }
        // SAFETY: the map is read only. Our own files are replaced by rename and never modified in
        // place; if another program truncates the file while it is read, a signal ends this
        // process.
        let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
        Self::new(Bytes::Mapped(map), path)
    }

    /// Reads bytes of the program as the file at `path`, the name in errors.
    pub fn of_built_in(bytes: &'static [u8], path: &Path) -> Result<Self> {
        Self::new(Bytes::BuiltIn(bytes), path)
    }

    fn new(bytes: Bytes, path: &Path) -> Result<Self> {
        let reader = Self {
            bytes,
            name: path.display().to_string(),
            path: path.to_path_buf(),
        };
        reader.parsed()?;
        Ok(reader)
    }

    fn parsed(&self) -> Result<SafeTensors<'_>> {
        SafeTensors::deserialize(&self.bytes).map_err(|e| self.not_safetensors(&e))
    }

    fn not_safetensors(&self, cause: &SafeTensorError) -> Error {
        let other = foreign::of(&self.path).filter(|kind| *kind != foreign::SAFETENSORS);
        if let Some(kind) = other {
            return hinted(
                format!(
                    "{} is {}; expected a safetensors file",
                    self.name, kind.name
                ),
                kind.remedy,
            );
        }
        let hint = match cause {
            SafeTensorError::MetadataIncompleteBuffer | SafeTensorError::InvalidHeaderLength => {
                "it ends too early or too late for what its header says: copy or download it again"
            }
            _ => "it is another kind of file, or damaged",
        };
        hinted(
            format!("{} is not a complete safetensors file ({cause})", self.name),
            hint,
        )
    }

    pub fn header(&self) -> Result<Header> {
        let (_, header) =
            SafeTensors::read_metadata(&self.bytes).map_err(|e| self.not_safetensors(&e))?;
        let tensors = header
            .tensors()
            .into_iter()
            .map(|(name, info)| (name, (info.dtype, info.shape.clone())))
            .collect();
        let metadata = header.metadata().clone().unwrap_or_default();
        Ok(Header {
            tensors,
            metadata: metadata.into_iter().collect(),
        })
    }

    /// All tensors, on the CPU, in the file's types as far as candle has them.
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let named = self.typed_tensors()?.into_iter();
        Ok(named.map(|(name, (tensor, _))| (name, tensor)).collect())
    }

    /// Like [`Reader::tensors`], with the types in the file.
    pub fn typed_tensors(&self) -> Result<Named> {
        let parsed = self.parsed()?;
        let tensors = parsed.tensors();
        tensors
            .into_iter()
            .map(|(name, view)| {
                let tensor = self.tensor(&name, &Raw::of(&view))?;
                Ok((name, (tensor, view.dtype())))
            })
            .collect()
    }

    /// The bytes of one tensor as stored in the file.
    pub fn raw(&self, name: &str) -> Result<Option<Raw<'_>>> {
        match self.parsed()?.tensor(name) {
            Ok(view) => Ok(Some(Raw::of(&view))),
            Err(SafeTensorError::TensorNotFound(_)) => Ok(None),
            Err(e) => Err(self.not_safetensors(&e)),
        }
    }

    /// All tensors as stored in the file.
    pub fn raws(&self) -> Result<BTreeMap<String, Raw<'_>>> {
        let views = self.parsed()?.tensors().into_iter();
        Ok(views.map(|(name, view)| (name, Raw::of(&view))).collect())
    }

    /// The tensor `name` of this file, on the CPU, in its type as far as candle has it.
    pub fn tensor(&self, name: &str, raw: &Raw<'_>) -> Result<Tensor> {
        elements::tensor(raw.dtype, &raw.bytes, &raw.shape).map_err(|what| {
            hinted(
                format!("{}: `{name}` {what}", self.name),
                "convert it to F32",
            )
        })
    }
}

/// Writes tensors and metadata to `path`, completely or not at all.
pub fn write(path: &Path, tensors: &BTreeMap<String, Tensor>, metadata: &Metadata) -> Result<()> {
    let entries = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    write_views(path, entries.collect(), metadata)
}

/// Like [`write`], for any views; the bytes of each are requested only when it is written.
pub fn write_views<V: View>(
    path: &Path,
    mut entries: Vec<(&str, V)>,
    metadata: &Metadata,
) -> Result<()> {
    let width = |view: &V| Reverse(view.dtype().bitsize());
    entries.sort_by(|(a, x), (b, y)| (width(x), a).cmp(&(width(y), b)));
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), json!(metadata));
    }
    let mut offset = 0;
    for (name, view) in &entries {
        let end = offset + view.data_len();
        let entry = json!({
            "dtype": format!("{:?}", view.dtype()),
            "shape": view.shape(),
            "data_offsets": [offset, end],
        });
        header.insert(name.to_string(), entry);
        offset = end;
    }
    let mut header = serde_json::to_vec(&Value::Object(header))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    atomic::write_with(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for (_, view) in &entries {
            file.write_all(&view.data())?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::report;
    use candle_core::{DType, Device};

    fn read(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("x.safetensors");
        std::fs::write(&path, bytes)?;
        Reader::open(&path)?.tensors()
    }

    fn sample() -> Result<(BTreeMap<String, Tensor>, Metadata)> {
        let device = Device::Cpu;
        let transposed = Tensor::arange(0f32, 6.0, &device)?.reshape((2, 3))?.t()?;
        let tensors = BTreeMap::from([
            ("b".into(), transposed),
            ("a".into(), Tensor::ones(3, DType::BF16, &device)?),
            ("c".into(), Tensor::zeros((), DType::I64, &device)?),
            ("empty".into(), Tensor::zeros((0, 4), DType::F32, &device)?),
        ]);
        let metadata = (0..20)
            .map(|i| (format!("key{i}"), format!("é{i}")))
            .collect();
        Ok((tensors, metadata))
    }

    #[test]
    fn what_is_written_is_read_and_equal_content_gives_equal_bytes() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let (tensors, metadata) = sample()?;
        let (one, two) = (folder.path().join("1"), folder.path().join("2"));
        write(&one, &tensors, &metadata)?;
        write(&two, &tensors, &metadata)?;
        assert_eq!(std::fs::read(&one)?, std::fs::read(&two)?);
        let reader = Reader::open(&one)?;
        assert_eq!(reader.header()?.metadata, metadata);
        let found = reader.tensors()?;
        assert_eq!(found.len(), 4);
        assert_eq!(found["b"].to_vec2::<f32>()?, [[0., 3.], [1., 4.], [2., 5.]]);
        assert_eq!(found["c"].to_scalar::<i64>()?, 0);
        assert_eq!(found["a"].dtype(), DType::BF16);
        assert_eq!(found["empty"].dims(), [0, 4]);
        Ok(())
    }

    #[test]
    fn damaged_and_hostile_files_are_refused() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("x");
        let (tensors, metadata) = sample()?;
        write(&path, &tensors, &metadata)?;
        let good = std::fs::read(&path)?;
        assert!(read(&good).is_ok());
        let mut long = good.clone();
        long.push(0);
        let mut huge = good.clone();
        huge[..8].copy_from_slice(&(1u64 << 60).to_le_bytes());
        // A tensor of 2^60 bytes in a file of a few bytes.
        let claim = br#"{"a":{"dtype":"U8","shape":[1152921504606846976],"data_offsets":[0,1152921504606846976]}}"#;
        let mut claims = (claim.len() as u64).to_le_bytes().to_vec();
        claims.extend(claim);
        // 2^32 · 2^32 · 4 bytes wraps around to 0.
        let wrap = br#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#;
        let mut wraps = (wrap.len() as u64).to_le_bytes().to_vec();
        wraps.extend(wrap);
        for bytes in [
            &[][..],
            b"abc",
            b"\x89PNG\r\n\x1a\n and so on",
            &good[..good.len() - 1],
            &good[..30],
            &long,
            &huge,
            &claims,
            &wraps,
        ] {
            let (text, code) = report(&read(bytes).expect_err("this must be refused"));
            assert!(
                text.contains("x.safetensors") && text.contains("hint:"),
                "{text}"
            );
            assert_eq!(code, 1);
        }
        Ok(())
    }
}
