//! Names of reference sets, by SHA-256: `references.toml` in `$XDG_CONFIG_HOME/rdpm`
//! (`~/.config/rdpm`), which users write themselves. A line is `"<digest>" = "name"`, with the
//! digest that a report prints.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Context, Result};

/// The name of the set with this digest, if the table has it.
pub fn name_of(digest: &str) -> Result<Option<String>> {
    match file() {
        Some(path) if path.is_file() => Ok(read(&path)?.remove(digest)),
        _ => Ok(None),
    }
}

/// Errors: the table cannot be read; reported before anything is computed.
pub fn check() -> Result<()> {
    name_of("").map(drop)
}

fn file() -> Option<PathBuf> {
    let folder = |name: &str| {
        std::env::var_os(name)
            .filter(|p| !p.is_empty())
            .map(PathBuf::from)
    };
    let root = folder("XDG_CONFIG_HOME").or_else(|| Some(folder("HOME")?.join(".config")))?;
    Some(root.join("rdpm/references.toml"))
}

fn read(path: &Path) -> Result<BTreeMap<String, String>> {
    let failed = || format!("cannot use {}", path.display());
    let text = std::fs::read_to_string(path).with_context(failed)?;
    toml::from_str(&text).with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_gives_names_and_a_damaged_one_its_path() -> Result<()> {
        let root = tempfile::tempdir()?;
        let path = root.path().join("references.toml");
        std::fs::write(&path, "\"ab12\" = \"ImageNet 256, ADM\"\n")?;
        assert_eq!(read(&path)?["ab12"], "ImageNet 256, ADM");
        std::fs::write(&path, "ab12 = [")?;
        assert!(format!("{:#}", read(&path).unwrap_err()).contains("references.toml"));
        Ok(())
    }
}
