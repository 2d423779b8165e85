//! Reading any weights file into named tensors: `.safetensors`, and PyTorch's `.pth` in both of its formats.
//!
//! What a file is, its first bytes say; its name does not matter.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use candle_core::Tensor;

use super::pth;
use super::safetensors::Reader;
use crate::error::{Result, hinted};

/// The tensors of `path` by name, on the CPU, in the types of the file.
///
/// Of a `.pth` the state dict is looked for: at the top, else under `state_dict`, `model`, `params_ema` and the
/// like. A pickle runs nothing: whatever is not a tensor is data, and what would be called is refused by name.
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    match kind(path)? {
        Kind::Zip => pth::read_zip(path),
        Kind::Legacy => pth::read_legacy(path),
        Kind::Safetensors => Reader::open(path)?.tensors(),
    }
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
        // A pickle's PROTO, then the long integer that is torch.save's old magic number.
        [0x80, _, 0x8a, 10, ..] => Ok(Kind::Legacy),
        [_, _, _, _, _, _, _, _, b'{', ..] => Ok(Kind::Safetensors),
        [] => Err(hinted(
            format!("{} is empty", path.display()),
            "it was not written whole",
        )),
        _ => Err(hinted(
            format!("{} is no weights file", path.display()),
            "expected .safetensors, or what torch.save writes",
        )),
    }
}

#[cfg(test)]
mod tests;
