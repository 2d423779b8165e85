//! SHA-256 of files and of weights, which ties caches, codes files and checkpoints to what they
//! were made from.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use candle_core::Tensor;
use safetensors::View;
use sha2::{Digest, Sha256};

use crate::error::{Context, Result};
use crate::telemetry::pulse;

/// Of a file's bytes, in hexadecimal; the file is streamed.
pub fn sha256(path: &Path) -> Result<String> {
    let failed = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(failed)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        let n = file.read(&mut buffer).with_context(failed)?;
        if n == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..n]);
        pulse::beat();
    }
}

/// Of names, types, shapes and values, sorted by name: equal for equal weights, whichever file they
/// came from.
pub fn of_tensors(tensors: &BTreeMap<String, Tensor>) -> Result<String> {
    let mut hash = Sha256::new();
    for (name, tensor) in tensors {
        hash.update(format!("{name} {:?} {:?}\n", tensor.dtype(), tensor.dims()));
        hash.update(tensor.data());
    }
    Ok(hex(&hash.finalize()))
}

/// Of bytes in memory, in hexadecimal.
pub fn of_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn a_file_has_the_published_digest() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("abc");
        std::fs::write(&path, "abc")?;
        assert_eq!(
            sha256(&path)?,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        let error = sha256(&folder.path().join("none")).unwrap_err();
        assert!(format!("{error:#}").contains("none"));
        Ok(())
    }

    #[test]
    fn weights_differ_by_name_shape_and_value() -> Result<()> {
        let digest = |name: &str, shape: (usize, usize), value: f32| -> Result<String> {
            let tensor = Tensor::full(value, shape, &Device::Cpu)?;
            of_tensors(&BTreeMap::from([(name.to_string(), tensor)]))
        };
        let one = digest("a", (2, 3), 1.0)?;
        assert_eq!(digest("a", (2, 3), 1.0)?, one);
        for other in [
            digest("b", (2, 3), 1.0)?,
            digest("a", (3, 2), 1.0)?,
            digest("a", (2, 3), 2.0)?,
        ] {
            assert_ne!(other, one);
        }
        Ok(())
    }
}
