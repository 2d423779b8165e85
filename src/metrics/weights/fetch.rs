//! Weights by their address: a file in the cache folder, downloaded where it is missing, whose
//! digest is in its name.

use std::path::PathBuf;

use sha2::{Digest, Sha256};

use super::{unverified, verify};
use crate::error::Result;
use crate::store::digest::hex;
use crate::store::download::{Wanted, download};

/// Downloads `address` to `path`, unless it exists.
///
/// Errors: those of [`download`]; a digest that is not the name's.
pub(super) fn fetch(address: &str, path: PathBuf) -> Result<PathBuf> {
    if path.is_file() {
        verify(address, &path)?;
        return Ok(path);
    }
    let digest = expected_digest(address);
    let fetched = download(&Wanted {
        address,
        path: &path,
        digest: digest.map(|digest| (digest, "the name")),
        token: None,
    })?;
    if digest.is_none() {
        unverified(address);
    }
    Ok(fetched)
}

/// The file name in the cache folder for `address`: its last part if that has a digest, else a name
/// with a digest of the address.
pub(super) fn cache_name(address: &str) -> String {
    let plain = address.split(['?', '#']).next().unwrap_or(address);
    let name = plain.rsplit('/').next().filter(|name| !name.is_empty());
    let name = name.unwrap_or("weights");
    if expected_digest(name).is_some() {
        return name.to_string();
    }
    let hash = hex(&Sha256::digest(address.as_bytes()));
    format!("{}-{name}", &hash[..8])
}

/// The digest in a file's address: 64 hexadecimal digits as a folder, or eight after the last dash
/// of the name.
pub(super) fn expected_digest(address: &str) -> Option<&str> {
    let is_hex = |text: &str, n: usize| {
        text.len() == n
            && text
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let plain = address.split(['?', '#']).next().unwrap_or(address);
    let mut parts = plain.rsplit(['/', '\\']);
    let name = parts.next().unwrap_or_default();
    if let Some(whole) = parts.find(|part| is_hex(part, 64)) {
        return Some(whole);
    }
    let (_, end) = name.rsplit_once('-')?;
    let digest = end.split('.').next()?;
    is_hex(digest, 8).then_some(digest)
}
