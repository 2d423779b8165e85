//! Models from a server in this process that serves the hub's paths.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

use super::*;
use crate::error::report;
use crate::store::digest::hex;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const NEXT: &str = "fedcba9876543210fedcba9876543210fedcba98";

/// What the server has, and how it behaves.
#[derive(Clone)]
struct State {
    content: Vec<u8>,
    /// What `main` is.
    commit: &'static str,
    /// The SHA-256 that it claims.
    digest: String,
    token: Option<&'static str>,
    /// The first answer with the file ends after so many bytes.
    cut: Option<usize>,
    /// METHOD path, and the range if one was asked for.
    asked: Vec<String>,
}

struct Server {
    port: u16,
    state: Arc<Mutex<State>>,
}

impl Server {
    fn new(content: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let digest = hex(&Sha256::digest(&content));
        let state = Arc::new(Mutex::new(State {
            content,
            commit: COMMIT,
            digest,
            token: None,
            cut: None,
            asked: Vec::new(),
        }));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), port, &mut shared.lock().unwrap());
            }
        });
        Self { port, state }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    /// What it was asked since the last call.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }

    fn hub(&self, cache: &Path) -> Hub {
        Hub {
            endpoint: format!("http://127.0.0.1:{}", self.port),
            token: None,
            offline: false,
            cache: cache.to_path_buf(),
        }
    }
}

fn answer(mut stream: TcpStream, port: u16, state: &mut State) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let head: Vec<String> = lines
        .by_ref()
        .map_while(|line| line.ok().filter(|line| !line.is_empty()))
        .collect();
    let field = |name: &str| {
        head.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            let is_it = key.eq_ignore_ascii_case(name);
            is_it.then(|| value.trim().to_string())
        })
    };
    let mut words = head[0].split(' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let range = field("range");
    let asked = format!("{method} {path} {}", range.clone().unwrap_or_default());
    state.asked.push(asked.trim_end().to_string());
    let mut say = |status: &str, fields: &[(&str, String)], body: &[u8], length: usize| {
        let fields = fields.iter().map(|(k, v)| format!("{k}: {v}\r\n"));
        let head = format!(
            "HTTP/1.1 {status}\r\n{}Content-Length: {length}\r\nConnection: close\r\n\r\n",
            fields.collect::<String>()
        );
        // The client may already be gone.
        let _ = stream
            .write_all(head.as_bytes())
            .and_then(|()| stream.write_all(body));
    };
    let allowed = match state.token {
        Some(token) => field("authorization") == Some(format!("Bearer {token}")),
        None => true,
    };
    let code = |code: &str| ("X-Error-Code", code.to_string());
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match parts[..] {
        // The storage, another host, which needs no token and must be sent none.
        ["storage"] if field("authorization").is_some() => say("400 Bad Request", &[], b"", 0),
        ["storage"] => {
            let from = range.map(|r| r["bytes=".len()..r.len() - 1].parse::<usize>().unwrap());
            let part = &state.content[from.unwrap_or(0)..];
            let sent = &part[..state.cut.take().unwrap_or(part.len()).min(part.len())];
            let etag = ("ETag", "\"stored\"".to_string());
            match from {
                None => say("200 OK", &[etag], sent, part.len()),
                Some(a) => {
                    let all = state.content.len();
                    let range = ("Content-Range", format!("bytes {a}-{}/{all}", all - 1));
                    say("206 Partial Content", &[etag, range], sent, part.len());
                }
            }
        }
        ["anna", "old", ..] => {
            let to = path.replace("/old/", "/tiny/");
            say("307 Temporary Redirect", &[("Location", to)], b"", 0);
        }
        ["anna", "tiny", "resolve", ..] if !allowed => {
            say("401 Unauthorized", &[code("RepoNotFound")], b"", 0);
        }
        ["anna", "tiny", "resolve", revision, MODEL] => {
            let commit = match revision {
                "main" => state.commit,
                "v1" | COMMIT => COMMIT,
                NEXT => NEXT,
                _ => return say("404 Not Found", &[code("RevisionNotFound")], b"", 0),
            };
            let fields = [
                ("X-Repo-Commit", commit.to_string()),
                ("X-Linked-Etag", format!("\"{}\"", state.digest)),
                ("Location", format!("http://localhost:{port}/storage")),
            ];
            say("302 Found", &fields, b"", 0);
        }
        ["anna", "pictures", ..] => say("404 Not Found", &[code("EntryNotFound")], b"", 0),
        _ => say("404 Not Found", &[code("RepoNotFound")], b"", 0),
    }
}

fn content(seed: u32) -> Vec<u8> {
    (0..200_000u32)
        .map(|i| ((i * i + seed) >> 7) as u8)
        .collect()
}

fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path.file_name().unwrap().to_string_lossy().into_owned()),
        }
    }
    found.sort();
    found
}

#[test]
fn a_model_is_downloaded_once_and_found_again_by_asking_for_its_commit() -> Result<()> {
    let (folder, server) = (tempfile::tempdir()?, Server::new(content(1)));
    let hub = server.hub(folder.path());
    let path = hub.model("hf://anna/tiny")?;
    assert!(fs::read(&path)? == content(1));
    assert_eq!(
        server.asked(),
        [
            format!("HEAD /anna/tiny/resolve/main/{MODEL}"),
            format!("GET /anna/tiny/resolve/{COMMIT}/{MODEL}"),
            "GET /storage".to_string(),
        ]
    );
    assert_eq!(files(folder.path()), ["main", MODEL]);
    for (asked, revision) in [
        ("hf://anna/tiny", "main"),
        ("hf://anna/tiny@v1", "v1"),
        (format!("hf://anna/tiny@{COMMIT}").as_str(), COMMIT),
    ] {
        assert_eq!(hub.model(asked)?, path);
        let head = format!("HEAD /anna/tiny/resolve/{revision}/{MODEL}");
        assert_eq!(server.asked(), [head]);
    }
    Ok(())
}

#[test]
fn a_branch_that_has_moved_brings_its_new_commit() -> Result<()> {
    let (folder, server) = (tempfile::tempdir()?, Server::new(content(1)));
    let hub = server.hub(folder.path());
    let old = hub.model("hf://anna/tiny")?;
    server.change(|state| {
        state.content = content(2);
        state.digest = hex(&Sha256::digest(&state.content));
        state.commit = NEXT;
    });
    let new = hub.model("hf://anna/tiny")?;
    assert!(fs::read(new)? == content(2) && fs::read(old)? == content(1));
    Ok(())
}

#[test]
fn a_download_that_was_cut_goes_on_where_it_ended() -> Result<()> {
    let (folder, server) = (tempfile::tempdir()?, Server::new(content(1)));
    server.change(|state| state.cut = Some(70_000));
    let path = server.hub(folder.path()).model("hf://anna/tiny")?;
    assert!(fs::read(path)? == content(1));
    let asked = server.asked();
    let storage: Vec<&String> = asked.iter().filter(|a| a.contains("storage")).collect();
    assert_eq!(storage, ["GET /storage", "GET /storage bytes=70000-"]);
    Ok(())
}

#[test]
fn another_digest_than_the_hubs_is_an_error_and_nothing_is_kept() -> Result<()> {
    let (folder, server) = (tempfile::tempdir()?, Server::new(content(1)));
    let hub = server.hub(folder.path());
    server.change(|state| state.digest = "a".repeat(64));
    let (text, code) = report(&hub.model("hf://anna/tiny").unwrap_err());
    assert!(text.contains("the hub says aaaaaaaa"), "{text}");
    assert!(text.contains("hint: ") && code == 1, "{text}");
    assert!(files(folder.path()).is_empty());
    // The same for what the cache holds.
    server.change(|state| state.digest = hex(&Sha256::digest(&state.content)));
    let path = hub.model("hf://anna/tiny")?;
    fs::write(&path, "damaged")?;
    let (text, _) = report(&hub.model("hf://anna/tiny").unwrap_err());
    assert!(text.contains("remove it"), "{text}");
    Ok(())
}

#[test]
fn a_private_repository_is_read_with_a_token_only() -> Result<()> {
    let (folder, server) = (tempfile::tempdir()?, Server::new(content(1)));
    server.change(|state| state.token = Some("secret"));
    let mut hub = server.hub(folder.path());
    let (text, code) = report(&hub.model("hf://anna/tiny").unwrap_err());
    assert!(
        text.contains("or it is private") && text.contains("hint: set HF_TOKEN"),
        "{text}"
    );
    assert_eq!(code, 1);
    hub.token = Some("wrong".into());
    let (text, _) = report(&hub.model("hf://anna/tiny").unwrap_err());
    assert!(text.contains("the token of $HF_TOKEN may not"), "{text}");
    assert!(!text.contains("wrong"), "{text}");
    hub.token = Some("secret".into());
    assert!(fs::read(hub.model("hf://anna/tiny")?)? == content(1));
    Ok(())
}

#[test]
fn what_is_not_there_is_named() -> Result<()> {
    let (folder, server) = (tempfile::tempdir()?, Server::new(content(1)));
    let hub = server.hub(folder.path());
    for (asked, words) in [
        ("hf://anna/none", "no such repository"),
        ("hf://anna/tiny@v9", "has no revision v9"),
        ("hf://anna/pictures", "it is no model of rdpm"),
    ] {
        let (text, code) = report(&hub.model(asked).unwrap_err());
        assert!(text.contains(words) && text.contains("hint: "), "{text}");
        assert_eq!(code, 1);
    }
    server.asked();
    for asked in [
        "hf://anna",
        "hf://anna/",
        "hf://anna/tiny/file",
        "hf://anna/tiny@",
        "hf://../tiny",
        "hf://anna/tiny@../x",
    ] {
        let (text, code) = report(&hub.model(asked).unwrap_err());
        assert!(text.contains("not a repository") && code == 2, "{text}");
    }
    assert!(server.asked().is_empty());
    Ok(())
}

#[test]
fn a_repository_that_has_moved_is_found_by_its_old_name() -> Result<()> {
    let (folder, server) = (tempfile::tempdir()?, Server::new(content(1)));
    let path = server.hub(folder.path()).model("hf://anna/old")?;
    assert!(fs::read(path)? == content(1));
    Ok(())
}

#[test]
fn without_a_server_the_cache_serves_what_it_has() -> Result<()> {
    let (folder, server) = (tempfile::tempdir()?, Server::new(content(1)));
    let hub = server.hub(folder.path());
    let path = hub.model("hf://anna/tiny")?;
    server.asked();
    let closed = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let offline = Hub {
        offline: true,
        ..hub.clone()
    };
    let unreachable = Hub {
        endpoint: format!("http://127.0.0.1:{closed}"),
        ..hub
    };
    for hub in [offline, unreachable] {
        assert_eq!(hub.model("hf://anna/tiny")?, path);
        assert_eq!(hub.model(&format!("hf://anna/tiny@{COMMIT}"))?, path);
        let (text, code) = report(&hub.model("hf://anna/other").unwrap_err());
        assert!(
            text.contains("the cache has no such model") && text.contains("hint: "),
            "{text}"
        );
        assert_eq!(code, 1);
    }
    assert!(server.asked().is_empty());
    Ok(())
}
