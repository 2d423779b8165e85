//! Who may use the server.
//!
//! With a token: who sends it. Without one the server listens on a loopback address, and whoever
//! uses this machine may. A web page that is open in a browser there may not: it is told apart by
//! the `Origin` that the browser sends, and one that has its own name point to 127.0.0.1 (DNS
//! rebinding) by the `Host`.

use std::net::IpAddr;
use std::str::FromStr;

use axum::http::{HeaderMap, StatusCode, header};
use sha2::{Digest, Sha256};

use super::refusal::Refusal;

/// The shortest token: 16 characters of `openssl rand -hex` are 64 bits.
const SHORTEST: usize = 16;

/// A secret that is compared without saying where it differs.
#[derive(Clone)]
pub struct Token([u8; 32]);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("Token")
    }
}

impl FromStr for Token {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.len() >= SHORTEST && text.bytes().all(|b| b.is_ascii_graphic()) {
            true => Ok(Self(hash(text))),
            false => Err(format!(
                "a token has at least {SHORTEST} characters of ASCII, without spaces: `openssl rand -hex 16` makes one"
            )),
        }
    }
}

fn hash(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

/// Whether a client that names its server `host` means its own machine.
fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || address.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// Whether these headers of a request for `path` give access to it.
pub fn check(token: Option<&Token>, path: &str, headers: &HeaderMap) -> Result<(), Refusal> {
    match token {
        // The page itself is no secret, and asks for the token; a load balancer has none.
        Some(token) if path.starts_with("/v1/") || path == "/metrics" => has(token, headers),
        Some(_) => Ok(()),
        None => is_local(headers),
    }
}

fn has(token: &Token, headers: &HeaderMap) -> Result<(), Refusal> {
    let given = headers.get(header::AUTHORIZATION);
    let given = given.and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.split_once(' '));
    match given {
        // Hashes: how long this takes says nothing about the token.
        Some((scheme, text)) if scheme.eq_ignore_ascii_case("bearer") && hash(text) == token.0 => {
            Ok(())
        }
        _ => Err(Refusal::new(
            StatusCode::UNAUTHORIZED,
            "the token is missing or wrong",
            "send the server's token: `Authorization: Bearer TOKEN`",
        )),
    }
}

fn is_local(headers: &HeaderMap) -> Result<(), Refusal> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(header::HOST).unwrap_or_default();
    if !is_loopback(without_port(host)) {
        let what = match headers.contains_key(header::HOST) {
            true => "the Host header names another machine",
            false => "the Host header is missing",
        };
        return Err(Refusal::new(
            StatusCode::FORBIDDEN,
            what,
            "open it as 127.0.0.1 or localhost; other names need a server with a token",
        ));
    }
    let origin = headers.get(header::ORIGIN).map(|value| value.as_bytes());
    match origin {
        Some(origin) if origin != format!("http://{host}").as_bytes() => Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "the request comes from another web page",
            "a page of another origin needs a server with a token, behind a proxy of its own origin",
        )),
        _ => Ok(()),
    }
}

/// `[::1]:80`, `localhost:80`, `127.0.0.1` without what follows the address.
fn without_port(host: &str) -> &str {
    match host.rfind(':') {
        Some(at) if host[at + 1..].bytes().all(|b| b.is_ascii_digit()) => &host[..at],
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (
                header::HeaderName::from_static(name),
                value.parse().unwrap(),
            )
        };
        pairs.iter().map(pair).collect()
    }

    /// Of the refusal, if these headers are refused.
    fn status(token: Option<&Token>, path: &str, pairs: &[(&'static str, &str)]) -> Option<u16> {
        let refusal = check(token, path, &headers(pairs)).err()?;
        Some(refusal.status.as_u16())
    }

    #[test]
    fn loopback_is_an_address_and_not_a_prefix() {
        for host in [
            "127.0.0.1",
            "127.9.9.9",
            "localhost",
            "LocalHost",
            "::1",
            "[::1]",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "0.0.0.0",
            "::",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn without_a_token_only_this_machines_names_and_its_own_page_have_access() {
        let path = "/v1/images";
        for host in ["127.0.0.1:8000", "localhost:9", "[::1]:8000", "localhost"] {
            assert_eq!(status(None, path, &[("host", host)]), None, "{host}");
            let origin = format!("http://{host}");
            assert_eq!(
                status(None, path, &[("host", host), ("origin", &origin)]),
                None
            );
        }
        for host in [
            "evil.example:8000",
            "127.0.0.1.evil.example",
            "localhost:x",
            "",
        ] {
            assert_eq!(status(None, path, &[("host", host)]), Some(403), "{host}");
        }
        for origin in [
            "http://evil.example",
            "null",
            "http://localhost:8001",
            "https://localhost:8000",
        ] {
            let pairs = [("host", "localhost:8000"), ("origin", origin)];
            assert_eq!(status(None, path, &pairs), Some(403), "{origin}");
        }
        assert_eq!(status(None, path, &[]), Some(403));
        let refusal = check(None, path, &headers(&[])).expect_err("no Host");
        assert!(refusal.json().contains("is missing"), "{refusal:?}");
    }

    #[test]
    fn a_token_is_asked_for_where_something_is_told_or_computed() {
        let token: Token = "0123456789abcdef".parse().unwrap();
        let token = Some(&token);
        for path in ["/v1/classes", "/v1/images", "/v1/reconstruct", "/metrics"] {
            assert_eq!(status(token, path, &[]), Some(401), "{path}");
            for wrong in [
                "Bearer 0123456789abcdeF",
                "Bearer ",
                "0123456789abcdef",
                "Basic 0123456789abcdef",
            ] {
                assert_eq!(
                    status(token, path, &[("authorization", wrong)]),
                    Some(401),
                    "{wrong}"
                );
            }
            let right = [
                ("authorization", "bearer 0123456789abcdef"),
                ("host", "any.example"),
            ];
            assert_eq!(status(token, path, &right), None, "{path}");
        }
        assert_eq!(status(token, "/", &[]), None);
        assert_eq!(status(token, "/healthz", &[]), None);
        for weak in [
            "",
            "short",
            "0123456789abcde",
            "0123456789 abcdef",
            "ümlaut-0123456789",
        ] {
            assert!(weak.parse::<Token>().is_err(), "{weak}");
        }
    }
}
