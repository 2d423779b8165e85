//! Reads any weights file into named tensors: `.safetensors`, and PyTorch's `.pth` in both of its
//! formats.
//!
//! The first bytes decide what a file is; its name does not matter.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use candle_core::Tensor;
use safetensors::Dtype;

use super::safetensors::Reader;
use super::{foreign, names, pth};
use crate::error::{Result, hinted};
use crate::ops::finite;

/// Tensors by name, with the type of their elements in the file.
pub type Named = BTreeMap<String, (Tensor, Dtype)>;

/// What is read here, for errors.
pub(super) const WANTED: &str = "weights: .safetensors, or what torch.save writes";

/// The tensors of `path` by name, on the CPU, in the file's types as far as candle has them (see
/// [`elements`](super::elements)).
///
/// In a `.pth`, the state dict is searched: at the top, else under `state_dict`, `model`, `ema` and
/// similar keys. Of several the largest is taken, and of equal ones the moving average; a warning
/// says which. Reading a pickle runs no code: objects other than tensors are
/// data, and anything that would be called is refused by name.
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let named = read_typed(path)?.into_iter();
    Ok(named.map(|(name, (tensor, _))| (name, tensor)).collect())
}

/// Like [`read`], with the types in the file.
pub fn read_typed(path: &Path) -> Result<Named> {
    match kind(path)? {
        Kind::Zip => pth::read_zip(path),
        Kind::Legacy => pth::read_legacy(path),
        Kind::Safetensors => Reader::open(path)?.typed_tensors(),
    }
}

/// The weights of a network at `path`, under their own names (see [`names::bare`]).
///
/// Errors: as for [`read`]; a tensor that holds NaN or infinity, which would reach the results.
pub fn read_network(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let tensors = names::bare(read(path)?);
    for (name, tensor) in &tensors {
        if !finite::is_finite(tensor)? {
            return Err(hinted(
                format!("{}: `{name}` holds NaN or infinity", path.display()),
                "the file is damaged, or its training has diverged: use another",
            ));
        }
    }
    Ok(tensors)
}

enum Kind {
    Safetensors,
    Zip,
    Legacy,
}

fn kind(path: &Path) -> Result<Kind> {
    let mut start = Vec::new();
    File::open(path)
        .and_then(|file| file.take(16).read_to_end(&mut start))
        .map_err(|e| hinted(format!("cannot read {}: {e}", path.display()), ""))?;
    match start[..] {
        [b'P', b'K', 3, 4, ..] => Ok(Kind::Zip),
        // A pickle's PROTO opcode, then the long integer that is torch.save's old magic number.
        [0x80, _, 0x8a, 10, ..] => Ok(Kind::Legacy),
        [_, _, _, _, _, _, _, _, b'{', ..] => Ok(Kind::Safetensors),
        [] => Err(hinted(
            format!("{} is empty", path.display()),
            "it was not written completely",
        )),
        _ => Err(foreign::refusal(path, WANTED).unwrap_or_else(|| {
            hinted(
                format!("{} is not a weights file", path.display()),
                "expected .safetensors, or what torch.save writes",
            )
        })),
    }
}

#[cfg(test)]
mod tests;
