//! Finds a network's weights: a file or an address given by the user, the cache folder, or, on
//! request, the address where its authors publish them.
//!
//! The cache folder is `$XDG_CACHE_HOME/rdpm/weights`, else `~/.cache/rdpm/weights`. A file whose
//! name has the first eight hexadecimal digits of its SHA-256 (`vgg16-397923af.pth`), or whose
//! address has all 64, must match that digest.

mod fetch;
mod published;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Tensor;

use crate::error::{Result, hinted, rehinted, usage};
use crate::store::{digest, tensors};

pub use published::Network;

/// The weights file of `network`: `asked` (a path, `http(s)://…`, `hf://owner/repo/file`), else the
/// file in the cache folder, else, with `download`, the authors' file, downloaded to the cache
/// folder.
///
/// Errors: there is no file, or its digest differs from its name; the hint says what to download
/// and where to put it.
pub fn locate(network: Network, asked: Option<&str>, download: bool) -> Result<PathBuf> {
    let cache = || {
        cache().map_err(|e| {
            let option = network.published().option;
            rehinted(
                &e,
                format!("set HOME (or XDG_CACHE_HOME), or name the file with {option} FILE"),
            )
        })
    };
    match asked {
        Some(asked) if !is_address(asked) => named(network, Path::new(asked)),
        Some(asked) => match asked.strip_prefix("hf://") {
            Some(place) => from_hub(asked, place),
            None => fetch::fetch(asked, cache()?.join(fetch::cache_name(asked))),
        },
        None => cached(network, &cache()?, download),
    }
}

/// The tensors of the weights file at `path` under the network's own names, and its SHA-256.
///
/// Errors: as for [`tensors::read_network`].
pub fn read_hashed(path: &Path) -> Result<(BTreeMap<String, Tensor>, String)> {
    Ok((tensors::read_network(path)?, digest::sha256(path)?))
}

/// Whether `asked` is an address, by its scheme.
fn is_address(asked: &str) -> bool {
    ["http://", "https://", "hf://"]
        .iter()
        .any(|scheme| asked.starts_with(scheme))
}

fn named(network: Network, path: &Path) -> Result<PathBuf> {
    if path.is_file() {
        return Ok(path.to_path_buf());
    }
    Err(usage(
        format!("{}: no such weights file", path.display()),
        format!(
            "{} takes a file, http(s)://…, or hf://owner/repo/file",
            network.published().option
        ),
    ))
}

fn cached(network: Network, folder: &Path, download: bool) -> Result<PathBuf> {
    let published = network.published();
    let target = folder.join(published.name);
    let mut others = published.others.iter().map(|name| folder.join(name));
    if !target.is_file()
        && let Some(path) = others.find(|path| path.is_file())
    {
        return Ok(path);
    }
    if target.is_file() || download {
        return fetch::fetch(published.address, target);
    }
    Err(hinted(
        format!("no weights of {} in {}", published.title, folder.display()),
        format!(
            "--download downloads them; or download {} yourself and put it there as {}, or name a file with {} FILE{}",
            published.address, published.name, published.option, published.packaged
        ),
    ))
}

/// Errors: the file's SHA-256 does not begin with `expected`.
fn check(path: &Path, expected: &str) -> Result<()> {
    let found = digest::sha256(path)?;
    if found.starts_with(expected) {
        return Ok(());
    }
    Err(hinted(
        format!(
            "{}: its SHA-256 begins with {}, its name says {expected}",
            path.display(),
            &found[..expected.len()]
        ),
        "it is damaged or another file: remove it and download it again",
    ))
}

/// `owner/repo/file` or `owner/repo@revision/file`, through hf-hub and its cache.
fn from_hub(asked: &str, place: &str) -> Result<PathBuf> {
    let parts: Vec<&str> = place.splitn(3, '/').collect();
    let [owner, repo, file] = parts[..] else {
        return Err(usage(
            format!("{asked}: not a file in a repository"),
            "as in hf://owner/repo/file or hf://owner/repo@revision/file",
        ));
    };
    if [owner, repo, file].contains(&"") {
        return Err(usage(
            format!("{asked}: an empty name"),
            "as in hf://owner/repo/file or hf://owner/repo@revision/file",
        ));
    }
    let (repo, revision) = repo.split_once('@').unwrap_or((repo, "main"));
    let repo = hf_hub::Repo::with_revision(
        format!("{owner}/{repo}"),
        hf_hub::RepoType::Model,
        revision.to_string(),
    );
    let fetched = hf_hub::api::sync::ApiBuilder::from_env()
        .with_progress(true)
        .build()
        .and_then(|api| api.repo(repo).get(file));
    let path = fetched.map_err(|e| {
        hinted(
            format!("cannot download {asked}: {e}"),
            "download the file elsewhere and name its path",
        )
    })?;
    verify(asked, &path)?;
    Ok(path)
}

/// Compares the file at `path` with the digest in `address`, or logs that there is none.
fn verify(address: &str, path: &Path) -> Result<()> {
    match fetch::expected_digest(address) {
        Some(digest) => check(path, digest),
        None => {
            unverified(address);
            Ok(())
        }
    }
}

/// Logs that the file from `address` was not verified; reports contain its digest.
fn unverified(address: &str) {
    tracing::warn!("{address}: unverified, since its name has no digest to compare with");
}

/// The folder for weights.
pub fn cache() -> Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let root = match set("XDG_CACHE_HOME") {
        Some(root) => PathBuf::from(root),
        None => match set("HOME") {
            Some(home) => PathBuf::from(home).join(".cache"),
            None => {
                return Err(hinted(
                    "no folder for weights: neither HOME nor XDG_CACHE_HOME is set",
                    "set one of them",
                ));
            }
        },
    };
    Ok(root.join("rdpm/weights"))
}

#[cfg(test)]
mod tests;
