//! Models of a hub that serves Hugging Face's paths: `hf://owner/repo[@revision]`.
//!
//! `HEAD /owner/repo/resolve/REVISION/model.safetensors` gives the commit and the file's SHA-256;
//! the file of that commit is downloaded once, into `rdpm/models/owner--repo/COMMIT/` of the cache
//! folder. Where no server answers, the commit that the revision named last is used.
//!
//! $HF_ENDPOINT names another server, $HF_TOKEN a token for private repositories, and
//! $HF_HUB_OFFLINE=1 asks no server.

pub mod folder;

use std::fs;
use std::path::{Path, PathBuf};

use ureq::Body;
use ureq::http::{Response, StatusCode, header};

use super::atomic;
use super::digest;
use super::download::{self, Wanted, download};
use crate::error::{Context, Error, Result, hinted, usage};

const SCHEME: &str = "hf://";
const ENDPOINT: &str = "https://huggingface.co";

/// The file of a model's tensors, in a repository and in a folder of `export --hf`.
pub const MODEL: &str = "model.safetensors";

/// `path` as an address on the hub, if it is one.
pub fn address(path: &Path) -> Option<&str> {
    path.to_str().filter(|path| path.starts_with(SCHEME))
}

/// Where and how the hub is asked.
#[derive(Debug, Clone)]
pub struct Hub {
    pub endpoint: String,
    pub token: Option<String>,
    pub offline: bool,
    /// The folder for models.
    pub cache: PathBuf,
}

/// `owner/repo` at a revision: a branch, a tag or a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place<'a> {
    owner: &'a str,
    repo: &'a str,
    revision: &'a str,
}

/// What the hub says of a file.
struct Found {
    commit: String,
    /// SHA-256, of files that are stored as large ones.
    digest: Option<String>,
}

impl Hub {
    /// As the environment has it.
    ///
    /// Errors: there is no cache folder.
    pub fn from_environment() -> Result<Self> {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let root = match (set("XDG_CACHE_HOME"), set("HOME")) {
            (Some(root), _) => PathBuf::from(root),
            (None, Some(home)) => PathBuf::from(home).join(".cache"),
            (None, None) => {
                return Err(hinted(
                    "no folder for models: neither HOME nor XDG_CACHE_HOME is set",
                    "set one of them",
                ));
            }
        };
        Ok(Self {
            endpoint: set("HF_ENDPOINT").map_or(ENDPOINT.to_string(), |endpoint| {
                endpoint.trim_end_matches('/').to_string()
            }),
            token: set("HF_TOKEN"),
            offline: set("HF_HUB_OFFLINE").is_some_and(|value| value != "0"),
            cache: root.join("rdpm/models"),
        })
    }

    /// The file of the model at `asked`, downloaded unless the cache has it.
    ///
    /// Errors: no address of a repository; the server's answer, in words; no server, and nothing in
    /// the cache; a digest that is not the hub's.
    pub fn model(&self, asked: &str) -> Result<PathBuf> {
        let place = Place::parse(asked)?;
        let folder = self.cache.join(format!("{}--{}", place.owner, place.repo));
        // A revision such as refs/pr/1 is one file.
        let reference = folder.join("refs").join(place.revision.replace('/', "--"));
        let Some(found) = self.find(asked, &place)? else {
            return self.cached(asked, &folder, &reference);
        };
        let path = folder.join(&found.commit).join(MODEL);
        if path.is_file() {
            if let Some(expected) = &found.digest {
                check(&path, expected)?;
            }
        } else {
            let Place { owner, repo, .. } = place;
            let commit = &found.commit;
            download(&Wanted {
                address: &format!("{}/{owner}/{repo}/resolve/{commit}/{MODEL}", self.endpoint),
                path: &path,
                digest: found.digest.as_deref().map(|digest| (digest, "the hub")),
                token: self.token.as_deref(),
            })?;
        }
        remember(&reference, &found.commit)?;
        Ok(path)
    }

    /// None where no server answers, or none may be asked.
    fn find(&self, asked: &str, place: &Place) -> Result<Option<Found>> {
        if self.offline {
            return Ok(None);
        }
        let Place {
            owner,
            repo,
            revision,
        } = place;
        let endpoint = &self.endpoint;
        let mut address = format!("{endpoint}/{owner}/{repo}/resolve/{revision}/{MODEL}");
        let agent = download::agent();
        // The answer is wanted of the hub itself, not of the storage that it redirects to; but a
        // repository that has moved is redirected within the hub.
        for _ in 0..4 {
            let request = agent.head(&address).config().max_redirects(0).build();
            let request = match &self.token {
                Some(token) => request.header(header::AUTHORIZATION, format!("Bearer {token}")),
                None => request,
            };
            let response = match request.call() {
                Ok(response) => response,
                Err(error) => {
                    tracing::warn!("{address}: {error}");
                    return Ok(None);
                }
            };
            let status = response.status();
            if !status.is_success() && !status.is_redirection() {
                return Err(self.refusal(asked, place, status, &response));
            }
            match (commit(&response), moved(&response)) {
                (Some(commit), _) => {
                    let digest = linked_digest(&response);
                    return Ok(Some(Found { commit, digest }));
                }
                (None, Some(to)) => address = format!("{endpoint}{to}"),
                (None, None) => return Err(no_hub(endpoint)),
            }
        }
        Err(hinted(
            format!("{asked}: the server sends from one address to the next"),
            "name the repository by its present name",
        ))
    }

    fn refusal(
        &self,
        asked: &str,
        place: &Place,
        status: StatusCode,
        response: &Response<Body>,
    ) -> Error {
        let code = field(response, "x-error-code").unwrap_or_default();
        let Place {
            owner,
            repo,
            revision,
        } = place;
        let (what, hint) = match (status, code) {
            (StatusCode::NOT_FOUND, "RevisionNotFound") => (
                format!("{owner}/{repo} has no revision {revision}"),
                "name a branch, a tag or a commit of it after the @".to_string(),
            ),
            (StatusCode::NOT_FOUND, "EntryNotFound") => (
                format!("{owner}/{repo} has no {MODEL}: it is no model of rdpm"),
                "name a repository that holds what `rdpm export --hf` wrote".to_string(),
            ),
            (StatusCode::NOT_FOUND, _) => (
                "there is no such repository".to_string(),
                "as in hf://owner/repo or hf://owner/repo@revision".to_string(),
            ),
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => (
                "there is no such repository, or it is private".to_string(),
                match self.token {
                    Some(_) => "the token of $HF_TOKEN may not read it",
                    None => "set HF_TOKEN to a token that may read it",
                }
                .to_string(),
            ),
            (status, _) => (
                format!("the server answered {status}"),
                "try again later, or download the model elsewhere and name its path".to_string(),
            ),
        };
        hinted(format!("{asked}: {what}"), hint)
    }

    /// What the cache holds of a revision, without asking whether it is the newest.
    fn cached(&self, asked: &str, folder: &Path, reference: &Path) -> Result<PathBuf> {
        let revision = reference.file_name().unwrap_or_default();
        let commit = match fs::read_to_string(reference) {
            Ok(commit) => PathBuf::from(commit.trim()),
            Err(_) => PathBuf::from(revision),
        };
        let path = folder.join(&commit).join(MODEL);
        if path.is_file() {
            tracing::warn!(
                "{asked}: from the cache, commit {}, without asking for a newer one",
                commit.display()
            );
            return Ok(path);
        }
        let (what, hint) = match self.offline {
            true => ("HF_HUB_OFFLINE is set", "unset it"),
            false => ("no server answers", "look at the network"),
        };
        Err(hinted(
            format!("{asked}: {what}, and the cache has no such model"),
            format!("{hint}, or download the model elsewhere and name its path with --model"),
        ))
    }
}

impl<'a> Place<'a> {
    fn parse(asked: &'a str) -> Result<Self> {
        let plain = |name: &str| {
            !name.is_empty()
                && !name.starts_with('.')
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        let place = asked.strip_prefix(SCHEME).and_then(|place| {
            let (place, revision) = place.split_once('@').unwrap_or((place, "main"));
            let (owner, repo) = place.split_once('/')?;
            Some(Place {
                owner,
                repo,
                revision,
            })
        });
        place
            .filter(|place| {
                let parts = place.revision.split('/');
                plain(place.owner) && plain(place.repo) && parts.into_iter().all(plain)
            })
            .ok_or_else(|| {
                usage(
                    format!("{asked}: not a repository"),
                    "as in hf://owner/repo or hf://owner/repo@revision",
                )
            })
    }
}

fn field<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// Where on the hub itself the repository has moved to.
fn moved(response: &Response<Body>) -> Option<String> {
    let to = field(response, "location").filter(|to| to.starts_with('/'));
    to.filter(|_| response.status().is_redirection())
        .map(str::to_string)
}

fn commit(response: &Response<Body>) -> Option<String> {
    let commit = field(response, "x-repo-commit")?;
    let is_hash = commit.len() >= 7 && commit.bytes().all(|b| b.is_ascii_hexdigit());
    is_hash.then(|| commit.to_string())
}

/// The SHA-256 that the hub gives as the ETag of a large file.
fn linked_digest(response: &Response<Body>) -> Option<String> {
    let tag = field(response, "x-linked-etag")?.trim_matches('"');
    let is_digest = tag.len() == 64 && tag.bytes().all(|b| b.is_ascii_hexdigit());
    is_digest.then(|| tag.to_ascii_lowercase())
}

fn no_hub(endpoint: &str) -> Error {
    hinted(
        format!("{endpoint} does not answer as a hub does: it names no commit"),
        "set HF_ENDPOINT to a hub, or unset it",
    )
}

fn check(path: &Path, expected: &str) -> Result<()> {
    let found = digest::sha256(path)?;
    match found == expected {
        true => Ok(()),
        false => Err(hinted(
            format!(
                "{}: its SHA-256 begins with {:.8}, the hub says {:.8}",
                path.display(),
                found,
                expected
            ),
            "it is damaged: remove it, and it is downloaded again",
        )),
    }
}

fn remember(reference: &Path, commit: &str) -> Result<()> {
    if fs::read_to_string(reference).is_ok_and(|known| known == commit) {
        return Ok(());
    }
    if let Some(folder) = reference.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    atomic::write_file(reference, commit.as_bytes())
}

#[cfg(test)]
mod tests;
