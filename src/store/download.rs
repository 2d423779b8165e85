//! Downloads a file over HTTP: resumed after an interruption, verified, and moved into place only
//! when complete.
//!
//! The partial download is beside its destination as `NAME.part`; `NAME.part.version` holds the
//! server's ETag or, without one, the file's date. The rest is requested with `Range` and
//! `If-Range`, so that a server whose file has changed, or that does not support ranges, sends it
//! from the beginning. If the server gives neither ETag nor date, the download starts from scratch.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ureq::config::RedirectAuthHeaders;
use ureq::http::{Response, StatusCode, header};
use ureq::{Agent, Body};

use super::atomic;
use super::lock::Lock;
use crate::error::{Context, Error, Result, hinted};
use crate::telemetry::Progress;

/// Timeout for a silent server.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often a connection that made progress may be cut.
const ATTEMPTS: usize = 5;

const MIB: u64 = 1 << 20;

/// A file that is downloaded.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    pub address: &'a str,
    /// Where it is put.
    pub path: &'a Path,
    /// What its SHA-256 begins with, if that is known, and who says so.
    pub digest: Option<(&'a str, &'a str)>,
    /// Sent as `Authorization: Bearer …`, to this server only.
    pub token: Option<&'a str>,
}

/// Downloads the file; whatever is at its path is replaced.
///
/// Errors: the server's or the network's message, with where to put the file by hand.
pub fn download(wanted: &Wanted) -> Result<PathBuf> {
    let path = wanted.path;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let mut part = Part::open(path)?;
    let agent = agent();
    let mut cut = None;
    for _ in 0..ATTEMPTS {
        let before = part.length;
        match part.receive(&agent, wanted) {
            Ok(()) => {
                cut = None;
                break;
            }
            // Only a connection that made progress is worth another attempt.
            Err(Failure::Cut(e)) if part.length > before => cut = Some(e),
            Err(Failure::Cut(e)) => return Err(unreachable(wanted.address, path, &e)),
            Err(Failure::Other(e)) => return Err(e),
        }
    }
    if let Some(e) = cut {
        return Err(unreachable(wanted.address, path, &e));
    }
    if let Some((digest, origin)) = wanted.digest {
        part.check(wanted.address, digest, origin)?;
    }
    part.put_in_place()
}

/// An HTTP client that gives up on a silent server.
pub fn agent() -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        // Ranges count bytes of the file, not of its compressed form.
        .accept_encoding("identity")
        .redirect_auth_headers(RedirectAuthHeaders::SameHost)
        .timeout_connect(Some(PATIENCE))
        .timeout_recv_response(Some(PATIENCE))
        .timeout_per_read(Some(PATIENCE))
        .build()
        .into()
}

fn unreachable(address: &str, path: &Path, error: &str) -> Error {
    hinted(
        format!("cannot download {address}: {error}"),
        format!(
            "run the command again to continue the download, or download the file elsewhere and put it at {}",
            path.display()
        ),
    )
}

enum Failure {
    /// The connection was cut: worth another attempt.
    Cut(String),
    Other(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Other(error)
    }
}

/// A partial download.
struct Part {
    target: PathBuf,
    path: PathBuf,
    /// The file with the value for `If-Range`.
    version: PathBuf,
    file: File,
    _lock: Lock,
    length: u64,
}

impl Part {
    fn open(target: &Path) -> Result<Self> {
        let beside = |ending: &str| {
            let mut name = target.as_os_str().to_os_string();
            name.push(ending);
            PathBuf::from(name)
        };
        let path = beside(".part");
        let failed = || format!("cannot write {}", path.display());
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .with_context(failed)?;
        let lock = atomic::own(&file, &path).map_err(|e| match e.kind() {
            io::ErrorKind::ResourceBusy => hinted(
                format!("another process is downloading {}", target.display()),
                "wait for it",
            ),
            _ => hinted(format!("cannot write {}: {e}", path.display()), ""),
        })?;
        let length = file.metadata().with_context(failed)?.len();
        Ok(Self {
            target: target.to_path_buf(),
            version: beside(".part.version"),
            path,
            file,
            _lock: lock,
            length,
        })
    }

    /// Requests the missing part and appends it.
    fn receive(&mut self, agent: &Agent, wanted: &Wanted) -> std::result::Result<(), Failure> {
        let address = wanted.address;
        let mut request = agent.get(address);
        if let Some(token) = wanted.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let version = fs::read_to_string(&self.version).unwrap_or_default();
        if version.is_empty() {
            self.cut_to(0)?;
        }
        if self.length > 0 {
            request = request
                .header(header::RANGE, format!("bytes={}-", self.length))
                .header(header::IF_RANGE, version);
        }
        let response = request.call().map_err(|e| Failure::Cut(e.to_string()))?;
        let begin = match response.status() {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT => {
                let begin = range_begin(&response).filter(|begin| *begin == self.length);
                begin.ok_or_else(|| self.refused(address, "a range that was not asked for"))?
            }
            // Nothing is missing, or the file has become shorter: the digest decides, else it is
            // downloaded from scratch.
            StatusCode::RANGE_NOT_SATISFIABLE if total(&response) == Some(self.length) => {
                return Ok(());
            }
            StatusCode::RANGE_NOT_SATISFIABLE if self.length > 0 => {
                self.cut_to(0)?;
                return self.receive(agent, wanted);
            }
            status => return Err(self.refused(address, &status.to_string()).into()),
        };
        if begin != self.length {
            self.cut_to(begin)?;
        }
        self.remember_version(&response)?;
        self.append(response.into_body(), address)
    }

    fn append(&mut self, mut body: Body, address: &str) -> std::result::Result<(), Failure> {
        let left = body.content_length();
        let all = left.map(|left| self.length + left);
        let name = address.rsplit('/').next().unwrap_or(address);
        let mib = |bytes: u64| bytes.div_ceil(MIB);
        let mut progress = Progress::new(
            &format!("fetch {name}, MiB"),
            mib(all.unwrap_or(0)),
            mib(self.length),
        );
        let failed = |e| hinted(format!("cannot write {}: {e}", self.path.display()), "");
        self.file
            .seek(SeekFrom::Start(self.length))
            .map_err(failed)?;
        let (mut reader, mut buffer) = (body.as_reader(), vec![0; 1 << 16]);
        loop {
            let n = reader
                .read(&mut buffer)
                .map_err(|e| Failure::Cut(e.to_string()))?;
            if n == 0 {
                break;
            }
            self.file.write_all(&buffer[..n]).map_err(failed)?;
            self.length += n as u64;
            progress.set(mib(self.length), "");
        }
        match all {
            Some(all) if self.length < all => Err(Failure::Cut(format!(
                "the connection ended after {} of {all} bytes",
                self.length
            ))),
            _ => Ok(()),
        }
    }

    fn cut_to(&mut self, length: u64) -> Result<()> {
        let failed = || format!("cannot write {}", self.path.display());
        self.file.set_len(length).with_context(failed)?;
        self.length = length;
        Ok(())
    }

    /// A weak ETag does not promise equal bytes and is not kept.
    fn remember_version(&self, response: &Response<Body>) -> Result<()> {
        let field = |name| response.headers().get(name)?.to_str().ok();
        let etag = field(header::ETAG).filter(|etag| !etag.starts_with("W/"));
        let version = etag.or_else(|| field(header::LAST_MODIFIED)).unwrap_or("");
        fs::write(&self.version, version)
            .with_context(|| format!("cannot write {}", self.version.display()))
    }

    fn refused(&self, address: &str, what: &str) -> Error {
        hinted(
            format!("cannot download {address}: the server answered {what}"),
            format!(
                "download the file elsewhere and put it at {}",
                self.target.display()
            ),
        )
    }

    /// Errors: the SHA-256 does not begin with `digest`, as `origin` says.
    fn check(&self, address: &str, digest: &str, origin: &str) -> Result<()> {
        let found = super::digest::sha256(&self.path)?;
        if found.starts_with(digest) {
            return Ok(());
        }
        self.remove();
        Err(hinted(
            format!(
                "{address}: the SHA-256 of the download begins with {}, {origin} says {digest}",
                &found[..digest.len()]
            ),
            "the download was removed: try again; if it stays so, download the file yourself and name its path",
        ))
    }

    fn put_in_place(self) -> Result<PathBuf> {
        let failed = || format!("cannot write {}", self.target.display());
        self.file.sync_all().with_context(failed)?;
        fs::rename(&self.path, &self.target).with_context(failed)?;
        // Exists only while a partial download does.
        let _ = fs::remove_file(&self.version);
        Ok(self.target)
    }

    fn remove(&self) {
        for path in [&self.path, &self.version] {
            // Report the first error.
            let _ = fs::remove_file(path);
        }
    }
}

/// The a of `Content-Range: bytes a-b/total`.
fn range_begin(response: &Response<Body>) -> Option<u64> {
    let range = content_range(response)?;
    range.split('-').next()?.trim().parse().ok()
}

/// The total of `Content-Range: bytes …/total`.
fn total(response: &Response<Body>) -> Option<u64> {
    content_range(response)?.rsplit('/').next()?.parse().ok()
}

fn content_range(response: &Response<Body>) -> Option<&str> {
    let value = response.headers().get(header::CONTENT_RANGE)?;
    value.to_str().ok()?.strip_prefix("bytes ")
}
