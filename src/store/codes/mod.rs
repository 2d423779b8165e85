//! Codes files (docs/design.md, section 3): what `encode` writes and `decode` reads, in five
//! formats.
//!
//! In files, PyTorch's order: `codes` u16 or u32 [N,T,h,w], `labels` i64 [N], `noise` f32
//! [N,T,d,h,w], `latents` f32 [N,d,h,w]. In memory, channels last: codes u32 [T,N,h,w], noise
//! [T,N,h,w,d], latents [N,h,w,d].

mod format;
mod jsonl;
mod npy;
mod parquet;
mod rows;
mod safetensors;
pub mod set;
#[cfg(test)]
mod tests;
mod wds;

use std::path::Path;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::error::{Result, hinted};

pub use format::Format;
pub use safetensors::read_noise;

/// The version this program writes and reads.
pub const FORMAT: &str = "rdpm-codes/1";

/// The codes of N images.
#[derive(Debug, Clone)]
pub struct Codes {
    /// u32 [T,N,h,w]
    pub codes: Tensor,
    /// N labels, or none if the images had none.
    pub labels: Vec<u32>,
    /// The images' N names in their source, without ending; none in files without them.
    pub names: Vec<String>,
    /// Which of the N are mirror images; none if there are no such.
    pub mirrored: Vec<bool>,
    /// ε_t, f32 [T,N,h,w,d]
    pub noise: Option<Tensor>,
    /// v before the noise, f32 [N,h,w,d]
    pub latents: Option<Tensor>,
    pub origin: Origin,
}

/// Where codes come from; equal in all files of one `encode`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// [`super::bundle::Bundle::tokenizer_hash`] of the tokenizer that made them.
    pub tokenizer: String,
    /// Codebook size K: every code is below it.
    pub codebook_size: usize,
    pub seed: u64,
}

impl Codes {
    /// Writes to `path` in `format`, completely or not at all; codes as u16 if K allows it.
    pub fn write(&self, path: &Path, format: Format) -> Result<()> {
        match format {
            Format::Safetensors => safetensors::write(self, path),
            Format::Npy => npy::write(self, path),
            Format::Wds => wds::write(self, path),
            Format::Jsonl => jsonl::write(self, path),
            Format::Parquet => parquet::write(self, path),
        }
    }

    /// Reads a file of any of the formats; its content says of which.
    ///
    /// Errors: not a codes file, or of an unknown version; inconsistent shapes; a code outside the
    /// codebook.
    pub fn read(path: &Path) -> Result<Self> {
        let codes = match Format::of(path) {
            Format::Safetensors => safetensors::read(path),
            Format::Npy => npy::read(path),
            Format::Wds => wds::read(path),
            Format::Jsonl => jsonl::read(path),
            Format::Parquet => parquet::read(path),
        }?;
        codes.check(path)?;
        Ok(codes)
    }

    /// Number of images N.
    pub fn len(&self) -> usize {
        self.codes.dim(1).unwrap_or(0)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn check(&self, path: &Path) -> Result<()> {
        let Ok((t, n, h, w)) = self.codes.dims4() else {
            let shape = self.codes.dims();
            return Err(damaged(path, format!("its codes have shape {shape:?}")));
        };
        if [t, n, h, w].contains(&0) {
            let shape = [n, t, h, w];
            return Err(damaged(path, format!("its codes have shape {shape:?}")));
        }
        let k = self.origin.codebook_size;
        let codes = self.codes.flatten_all()?.to_vec1::<u32>()?;
        if let Some(code) = codes.iter().find(|code| **code as usize >= k) {
            return Err(damaged(path, format!("code {code} in a codebook of {k}")));
        }
        for (what, count) in [
            ("labels", self.labels.len()),
            ("names", self.names.len()),
            ("marks of mirror images", self.mirrored.len()),
        ] {
            if count != 0 && count != n {
                return Err(damaged(path, format!("{count} {what} for {n} images")));
            }
        }
        let d = |tensor: &Option<Tensor>, dims: &[usize]| match tensor {
            Some(tensor) => tensor
                .dims()
                .strip_prefix(dims)
                .is_some_and(|rest| matches!(rest, [d] if *d > 0)),
            None => true,
        };
        if !d(&self.noise, &[t, n, h, w]) {
            return Err(damaged(path, "its noise does not fit its codes".into()));
        }
        if !d(&self.latents, &[n, h, w]) {
            return Err(damaged(path, "its latents do not fit its codes".into()));
        }
        Ok(())
    }
}

fn damaged(path: &Path, what: String) -> crate::error::Error {
    hinted(
        format!("{} is not a valid codes file: {what}", path.display()),
        "remove it, and make it again with the same `rdpm encode` command",
    )
}
