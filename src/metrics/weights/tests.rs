//! Downloads from a server in this process that cuts connections, refuses, redirects and lies.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

use super::*;
use crate::error::report;
use crate::store::digest::hex;

/// How the server answers a request for the file.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Manner {
    Whole,
    /// The connection ends after this many bytes of each answer.
    Cut(usize),
    /// `Range` is not supported: every answer is the whole file.
    NoRange(usize),
    /// 302 to the file's other address.
    Redirect,
    /// 404
    Missing,
}

struct Server {
    port: u16,
    /// The `Range` of every request, or "-" for none.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Answers by `manners` in turn, then repeats the last; `etag` is sent with every answer.
    fn new(content: Vec<u8>, manners: &[Manner], etag: &str) -> Self {
        Self::saying(content, manners, "ETag", etag)
    }

    /// Like [`Server::new`], with another header field instead of the ETag.
    fn saying(content: Vec<u8>, manners: &[Manner], field: &'static str, etag: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (seen, manners, etag) = (asked.clone(), manners.to_vec(), etag.to_string());
        std::thread::spawn(move || {
            for (i, stream) in listener.incoming().enumerate() {
                let manner = manners[i.min(manners.len() - 1)];
                answer(stream.unwrap(), &content, manner, (field, &etag), &seen);
            }
        });
        Self { port, asked }
    }

    fn address(&self, name: &str) -> String {
        format!("http://127.0.0.1:{}/{name}", self.port)
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn answer(
    mut stream: TcpStream,
    content: &[u8],
    manner: Manner,
    (version, value): (&str, &str),
    seen: &Mutex<Vec<String>>,
) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let head: Vec<String> = lines
        .by_ref()
        .map_while(|line| line.ok().filter(|line| !line.is_empty()))
        .collect();
    let field = |name: &str| {
        head.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name)
                .then(|| value.trim().to_string())
        })
    };
    let range = field("range");
    seen.lock()
        .unwrap()
        .push(range.clone().unwrap_or("-".into()));
    let unchanged = field("if-range").is_none_or(|asked| asked == value);
    let from = range
        .filter(|_| unchanged && !matches!(manner, Manner::NoRange(_)))
        .map(|range| {
            range["bytes=".len()..range.len() - 1]
                .parse::<usize>()
                .unwrap()
        });
    let part = &content[from.unwrap_or(0)..];
    let begin = match (manner, from) {
        (Manner::Redirect, _) => "HTTP/1.1 302 Found\r\nLocation: /moved\r\n".to_string(),
        (Manner::Missing, _) => "HTTP/1.1 404 Not Found\r\n".to_string(),
        (_, None) => "HTTP/1.1 200 OK\r\n".to_string(),
        (_, Some(a)) => format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {a}-{}/{}\r\n",
            content.len() - 1,
            content.len()
        ),
    };
    let (body, length) = match manner {
        Manner::Redirect | Manner::Missing => (&[][..], 0),
        Manner::Cut(n) | Manner::NoRange(n) => (&part[..n.min(part.len())], part.len()),
        Manner::Whole => (part, part.len()),
    };
    let head = format!(
        "{begin}{version}: {value}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    // The client may already be gone.
    let _ = stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(body));
}

fn content() -> Vec<u8> {
    (0..300_000u32).map(|i| ((i * i) >> 7) as u8).collect()
}

/// `w-DIGEST.pth`, with the first eight digits of the content's digest.
fn name(content: &[u8]) -> String {
    format!("w-{}.pth", &hex(&Sha256::digest(content))[..8])
}

/// The file fetched from `address` into `folder`.
fn fetched(address: &str, folder: &Path) -> Result<Vec<u8>> {
    let path = fetch::fetch(address, folder.join(fetch::cache_name(address)))?;
    Ok(std::fs::read(path)?)
}

fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_file_is_fetched_once_and_nothing_else_remains() -> Result<()> {
    let (folder, content) = (tempfile::tempdir()?, content());
    let server = Server::new(content.clone(), &[Manner::Whole], "\"a\"");
    let address = server.address(&name(&content));
    for _ in 0..2 {
        assert_eq!(fetched(&address, folder.path())?, content);
    }
    assert_eq!(server.asked(), ["-"]);
    assert_eq!(files(folder.path()), [name(&content)]);
    Ok(())
}

#[test]
fn a_cut_connection_goes_on_where_it_stopped() -> Result<()> {
    let (folder, content) = (tempfile::tempdir()?, content());
    let manners = [Manner::Cut(70_000), Manner::Cut(80_000), Manner::Whole];
    let server = Server::new(content.clone(), &manners, "\"a\"");
    let found = fetched(&server.address(&name(&content)), folder.path())?;
    assert!(found == content);
    assert_eq!(server.asked(), ["-", "bytes=70000-", "bytes=150000-"]);
    Ok(())
}

#[test]
fn a_later_command_goes_on_from_what_an_earlier_one_left() -> Result<()> {
    let (folder, content) = (tempfile::tempdir()?, content());
    let dead = Server::new(
        content.clone(),
        &[Manner::Cut(90_000), Manner::Cut(0)],
        "\"a\"",
    );
    let error = fetched(&dead.address(&name(&content)), folder.path()).unwrap_err();
    let (text, _) = report(&error);
    assert!(text.contains("hint: run the command again"), "{text}");
    let server = Server::new(content.clone(), &[Manner::Whole], "\"a\"");
    let address = server.address(&name(&content));
    assert!(fetched(&address, folder.path())? == content);
    assert_eq!(server.asked(), ["bytes=90000-"]);
    assert_eq!(files(folder.path()), [name(&content)]);
    Ok(())
}

#[test]
fn a_file_that_has_changed_meanwhile_is_fetched_from_its_beginning() -> Result<()> {
    let (folder, old, new) = (tempfile::tempdir()?, vec![7; 200_000], content());
    let path = folder.path().join("weights.pth");
    let before = Server::new(old, &[Manner::Cut(90_000), Manner::Cut(0)], "\"old\"");
    assert!(fetch::fetch(&before.address("weights.pth"), path.clone()).is_err());
    let after = Server::new(new.clone(), &[Manner::Whole], "\"new\"");
    fetch::fetch(&after.address("weights.pth"), path.clone())?;
    assert!(std::fs::read(path)? == new);
    Ok(())
}

#[test]
fn without_an_etag_the_date_decides_and_without_both_it_is_fetched_from_its_beginning() -> Result<()>
{
    let (old, new) = (vec![7; 200_000], content());
    let date = "Sat, 28 Nov 2026 19:00:00 GMT";
    let later = "Sun, 29 Nov 2026 19:00:00 GMT";
    let (once, always) = ([Manner::Cut(90_000), Manner::Cut(0)], [Manner::Cut(90_000)]);
    for (field, first, second, cut, expected) in [
        ("Last-Modified", date, later, &once[..], "bytes=90000-"),
        ("X-Nothing", "", "", &always, "-"),
        ("ETag", "W/\"a\"", "W/\"a\"", &always, "-"),
    ] {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("weights.pth");
        let before = Server::saying(old.clone(), cut, field, first);
        assert!(fetch::fetch(&before.address("weights.pth"), path.clone()).is_err());
        let part = std::fs::metadata(folder.path().join("weights.pth.part"))?;
        assert_eq!(part.len(), 90_000, "{field}");
        let after = Server::saying(new.clone(), &[Manner::Whole], field, second);
        fetch::fetch(&after.address("weights.pth"), path.clone())?;
        assert!(std::fs::read(path)? == new, "{field}");
        assert_eq!(after.asked(), [expected]);
    }
    // The same date: requesting the rest is enough.
    let folder = tempfile::tempdir()?;
    let manners = [Manner::Cut(90_000), Manner::Whole];
    let server = Server::saying(new.clone(), &manners, "Last-Modified", date);
    assert!(fetched(&server.address(&name(&new)), folder.path())? == new);
    assert_eq!(server.asked(), ["-", "bytes=90000-"]);
    Ok(())
}

#[test]
fn a_server_without_ranges_sends_it_from_the_beginning() -> Result<()> {
    let (folder, content) = (tempfile::tempdir()?, content());
    let manners = [Manner::NoRange(120_000), Manner::NoRange(usize::MAX)];
    let server = Server::new(content.clone(), &manners, "\"a\"");
    let found = fetched(&server.address(&name(&content)), folder.path())?;
    assert!(found == content);
    assert_eq!(server.asked(), ["-", "bytes=120000-"]);
    Ok(())
}

#[test]
fn a_redirection_is_followed_and_keeps_the_range() -> Result<()> {
    let (folder, content) = (tempfile::tempdir()?, content());
    let manners = [Manner::Cut(70_000), Manner::Redirect, Manner::Whole];
    let server = Server::new(content.clone(), &manners, "\"a\"");
    let found = fetched(&server.address(&name(&content)), folder.path())?;
    assert!(found == content);
    assert_eq!(server.asked(), ["-", "bytes=70000-", "bytes=70000-"]);
    Ok(())
}

#[test]
fn another_digest_is_an_error_and_what_came_is_removed() -> Result<()> {
    let (folder, content) = (tempfile::tempdir()?, content());
    let server = Server::new(content, &[Manner::Whole], "\"a\"");
    let error = fetched(&server.address("w-0123abcd.pth"), folder.path()).unwrap_err();
    let (text, code) = report(&error);
    assert!(text.contains("the name says 0123abcd"), "{text}");
    assert_eq!((code, files(folder.path()).len()), (1, 0));
    // The same for a file in the cache.
    std::fs::write(folder.path().join("w-0123abcd.pth"), "other")?;
    let error = fetched(&server.address("w-0123abcd.pth"), folder.path()).unwrap_err();
    assert!(report(&error).0.contains("remove it"));
    Ok(())
}

#[test]
fn a_missing_file_and_a_dead_server_say_where_to_put_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = Server::new(content(), &[Manner::Missing], "\"a\"");
    let closed = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    for (address, why) in [
        (server.address("w-0123abcd.pth"), "404"),
        (
            format!("http://127.0.0.1:{closed}/w-0123abcd.pth"),
            "cannot download",
        ),
    ] {
        let (text, code) = report(&fetched(&address, folder.path()).unwrap_err());
        let place = folder.path().join("w-0123abcd.pth");
        assert!(
            text.contains(why) && text.contains(&*place.to_string_lossy()),
            "{text}"
        );
        assert_eq!(code, 1);
    }
    Ok(())
}

#[test]
fn the_cache_is_looked_at_before_anything_is_fetched() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let error = cached(Network::Inception, folder.path(), false).unwrap_err();
    let (text, _) = report(&error);
    for part in [
        "no weights of FID's Inception",
        "--download",
        "pt_inception-2015-12-05-6726825d.pth",
        "--weights FILE",
        "scripts/weights.sh",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let path = folder.path().join("fid_inception.safetensors");
    std::fs::write(&path, "x")?;
    for download in [false, true] {
        assert_eq!(cached(Network::Inception, folder.path(), download)?, path);
    }
    // A published file must match its digest.
    std::fs::write(folder.path().join("vgg16-397923af.pth"), "x")?;
    let error = cached(Network::Vgg16, folder.path(), false).unwrap_err();
    assert!(report(&error).0.contains("397923af"));
    Ok(())
}

#[test]
fn digests_are_read_from_names_and_folders() {
    let expected = fetch::expected_digest;
    let path = Network::Inception.published().address;
    assert_eq!(expected(path), Some("6726825d"));
    let clip = expected(Network::Clip.published().address).unwrap();
    assert!(clip.starts_with("40d36571") && clip.len() == 64);
    assert_eq!(expected(Network::DinoV2.published().address), None);
    for none in ["a/b.pth", "model-12.pth", "model-ABCDEF01.pth", "", "-"] {
        assert_eq!(expected(none), None, "{none}");
    }
    assert_eq!(
        expected("https://x/w-0123abcd.tar.gz?token=a-b/c"),
        Some("0123abcd")
    );
}

#[test]
fn a_wrong_name_says_what_is_taken() {
    for (asked, why) in [
        ("/no/such/file.pth", "no such weights file"),
        ("hf://owner/repo", "hf://owner/repo/file"),
        ("hf://owner//file", "an empty name"),
    ] {
        let error = locate(Network::Clip, Some(asked), false).unwrap_err();
        let (text, code) = report(&error);
        assert!(text.contains(why), "{text}");
        assert_eq!(code, 2);
    }
}

#[test]
fn a_hub_file_is_held_to_the_digest_of_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    std::fs::write(&path, b"weights").unwrap();
    let digest = hex(&Sha256::digest(b"weights"));
    let named = |digest: &str| format!("hf://owner/repo/net-{digest}.pth");
    verify(&named(&digest[..8]), &path).unwrap();
    verify("hf://owner/repo/net.pth", &path).unwrap();
    let (text, _) = report(&verify(&named("0123abcd"), &path).unwrap_err());
    assert!(text.contains("its name says 0123abcd"), "{text}");
}
