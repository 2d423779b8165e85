//! Requests that are refused, and clients that leave or dawdle.

use std::io::{Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use image::RgbImage;
use rdpm::store::bundle::Bundle;
use serde_json::json;

use super::client::{Answer, Server, command};
use super::{picture, place};

/// A PNG of no pixels whose header claims this size.
fn hollow(width: u32, height: u32) -> Vec<u8> {
    let mut small = std::io::Cursor::new(Vec::new());
    let one = RgbImage::new(1, 1);
    one.write_to(&mut small, image::ImageFormat::Png)
        .expect("a PNG");
    let mut bytes = small.into_inner();
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let mut crc = flate2::Crc::new();
    crc.update(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&crc.sum().to_be_bytes());
    bytes
}

#[test]
fn what_is_not_served_is_refused_with_a_reason_in_json() {
    let folder = place();
    let server = Server::start(folder.path(), "--max-num 8");
    let json = "POST /v1/images\r\nContent-Type: application/json";
    let large = vec![b' '; 65 << 10];
    let huge = vec![0; (16 << 20) + 1];
    let giant = hollow(40_000, 40_000);
    let cases: [(&str, &[u8], u16, &str); 20] = [
        (json, b"{", 400, "EOF"),
        (json, b"[[[[", 422, "invalid type"),
        (json, br#"{"class": "disk"}"#, 422, "disc"),
        (json, br#"{"class": "disc", "num": 9}"#, 422, "1 to 8"),
        (json, br#"{"class": "disc", "cfg": -1}"#, 422, "cfg"),
        (json, br#"{"class": "disc", "seed": "x"}"#, 422, "seed"),
        (json, &large, 413, "64 KiB"),
        ("POST /v1/images", br#"{"class": "disc"}"#, 415, "JSON"),
        (
            "POST /v1/images\r\nContent-Type: text/plain",
            br#"{"class": "disc"}"#,
            415,
            "JSON",
        ),
        ("POST /v1/reconstruct", b"", 422, "empty"),
        ("POST /v1/reconstruct", b"not an image", 422, "not an image"),
        ("POST /v1/reconstruct", b"GIF89a", 422, "found GIF"),
        ("POST /v1/reconstruct", &giant, 422, "40000"),
        ("POST /v1/reconstruct", &giant[..40], 422, "damaged PNG"),
        ("POST /v1/reconstruct?seed=-1", &giant, 422, "seed"),
        ("POST /v1/reconstruct", &huge, 413, "16 MiB"),
        ("GET /v1/images", b"", 405, "method"),
        ("GET /../../etc/passwd", b"", 404, "nothing"),
        ("GET /v1/classes\r\nHost: evil.example", b"", 403, "Host"),
        (
            "GET /v1/classes\r\nOrigin: http://evil.example",
            b"",
            403,
            "another web page",
        ),
    ];
    for (head, body, status, words) in cases {
        let answer = server.ask(head, body);
        assert_eq!(answer.status, status, "{head}: {}", answer.text());
        assert!(
            answer.head.contains("content-type: application/json"),
            "{head}"
        );
        let reason = answer.json();
        let error = reason["error"].as_str().expect("a reason").to_string();
        let hint = reason["hint"].as_str().expect("a hint");
        assert!(
            format!("{error} {hint}").contains(words),
            "{head}: {reason}"
        );
    }
    // None of them has done any harm.
    assert_eq!(server.draw(&json!({"class": "disc"})).status, 200);
}

#[test]
fn a_full_queue_refuses_and_who_leaves_is_forgotten() {
    let folder = place();
    let server = Server::start(
        folder.path(),
        "--max-num 512 --max-queue 520 --batch-size 1",
    );
    let long = json!({"class": "disc", "num": 512});
    let begin = Instant::now();
    let mut running = server.stream(&long);
    // Its first step is drawn.
    let mut bytes = [0; 4096];
    while !String::from_utf8_lossy(&bytes).contains("event: preview") {
        assert!(running.read(&mut bytes).expect("events") > 0);
    }
    let refused = server.draw(&json!({"class": "disc", "num": 256}));
    assert_eq!(refused.status, 429, "{}", refused.text());
    assert!(refused.head.contains("retry-after: "), "{}", refused.head);
    assert!(
        refused.text().contains("limit of 520"),
        "{}",
        refused.text()
    );
    // One that waits, for JSON, and leaves after the beginning of another request.
    let mut waiting = server.send(
        "POST /v1/images\r\nContent-Type: application/json",
        br#"{"class": "ring"}"#,
    );
    server.wait_for("rdpm_waiting_requests", 2.0);
    waiting.write_all(b"\r\nGET /").expect("taken");
    std::thread::sleep(Duration::from_millis(100));
    drop(waiting);
    server.wait_for("rdpm_cancelled_total", 1.0);
    assert_eq!(server.metric("rdpm_waiting_requests"), 1.0);
    // The one that is being drawn leaves.
    drop(running);
    server.wait_for("rdpm_cancelled_total", 2.0);
    server.wait_for("rdpm_waiting_images", 0.0);
    assert_eq!(server.draw(&json!({"class": "disc"})).status, 200);
    let drawn = server.metric("rdpm_images_total");
    assert!(
        drawn < 512.0,
        "all {drawn} were drawn in {:?}",
        begin.elapsed()
    );
}

#[test]
fn a_signal_ends_it_after_what_is_running() {
    let folder = place();
    let mut server = Server::start(
        folder.path(),
        "--max-num 256 --max-queue 300 --batch-size 256 --threads 1",
    );
    let body = json!({"class": "disc", "num": 256, "seed": 3});
    let mut running = server.stream(&body);
    let mut first = [0; 8];
    running.read_exact(&mut first).expect("an answer begins");
    server.wait_for("rdpm_waiting_requests", 0.0);
    // With other settings, so that it is in another batch.
    let waiting = server.stream(&json!({"class": "disc", "cfg": 1}));
    server.wait_for("rdpm_waiting_requests", 1.0);
    server.terminate();
    let refused = Answer::read(waiting).events();
    let (name, reason) = refused.last().expect("events");
    assert_eq!(name, "error", "{reason}");
    assert!(
        reason["error"].as_str().expect("text").contains("stopping"),
        "{reason}"
    );
    let mut rest = Vec::new();
    running.read_to_end(&mut rest).expect("events");
    let text = String::from_utf8_lossy(&rest);
    assert!(
        text.contains("event: done"),
        "the running request was not finished"
    );
    let last = text.rfind("event: preview\ndata: ").expect("a preview") + 21;
    let data = text[last..].lines().next().expect("a line");
    let data: serde_json::Value = serde_json::from_str(data).expect("JSON");
    assert_eq!(data["images"].as_array().map(Vec::len), Some(256));
    assert_eq!(picture(&data["images"][255]["png"]).dimensions(), (32, 32));
    assert_eq!(server.ended(), Some(0));
}

#[test]
fn others_need_the_token_that_a_public_address_asks_for() {
    let folder = place();
    let mut alone = command(
        folder.path(),
        "serve --model model.safetensors --host 0.0.0.0 --port 0",
    );
    let output = alone
        .stdin(Stdio::null())
        .output()
        .expect("the binary starts");
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{log}");
    assert!(log.contains("hint: give a --token"), "{log}");
    let secret = "correct-horse-battery";
    let server = Server::start(folder.path(), &format!("--host 0.0.0.0 --token {secret}"));
    for (header, status) in [
        ("", 401),
        ("\r\nAuthorization: Bearer wrong-horse-battery", 401),
        ("\r\nAuthorization: Bearer correct-horse-battery", 200),
        // The token is what counts, whatever name leads here.
        (
            "\r\nHost: any.example\r\nAuthorization: Bearer correct-horse-battery",
            200,
        ),
    ] {
        let answer = server.ask(&format!("GET /v1/classes{header}"), b"");
        assert_eq!(answer.status, status, "{header}");
    }
    assert_eq!(server.ask("GET /", b"").status, 200);
    assert_eq!(server.ask("GET /metrics", b"").status, 401);
    assert_eq!(server.draw(&json!({"class": "disc"})).status, 401);
}

#[test]
fn who_is_refused_is_told_so_before_a_body_is_sent() {
    let folder = place();
    let token = "correct-horse-battery";
    let server = Server::start(folder.path(), &format!("--token {token}"));
    let own = format!("Authorization: Bearer {token}\r\n");
    let waits = format!("{own}Expect: 100-continue\r\n");
    let begin = Instant::now();
    for (line, headers, size, status) in [
        ("POST /v1/images", "", 50_000_000, 401),
        ("POST /v1/images", "", 1000, 401),
        ("POST /healthz", "", 1000, 405),
        ("POST /nothing", "", 1000, 404),
        // Without "100 Continue" before it.
        ("POST /v1/images", &waits, 100 << 20, 413),
        ("POST /v1/reconstruct", &waits, 17 << 20, 413),
    ] {
        let mut stream = server.connect();
        let head = format!("{line} HTTP/1.1\r\nHost: a\r\n{headers}Content-Length: {size}\r\n\r\n");
        stream.write_all(head.as_bytes()).expect("a head is taken");
        let answer = Answer::read(stream);
        assert_eq!(answer.status, status, "{line}: {}", answer.text());
    }
    // One second for each of three whose body might still come.
    assert!(
        begin.elapsed() < Duration::from_secs(15),
        "{:?}",
        begin.elapsed()
    );
}

#[test]
fn a_model_that_cannot_draw_is_refused_before_an_address_is_printed() {
    let folder = place();
    let mut bundle = Bundle::read(&folder.path().join("model.safetensors")).expect("a bundle");
    bundle.generator = None;
    let path = folder.path().join("tokenizer.safetensors");
    bundle.write(&path, false).expect("written");
    let line = "serve --model tokenizer.safetensors --port 0";
    let output = command(folder.path(), line).output();
    let output = output.expect("the binary starts");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && log.contains("hint: "), "{log}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
}

#[test]
fn who_does_not_come_to_the_point_is_hung_up_on() {
    let folder = place();
    let server = Server::start(folder.path(), "");
    let mut half = server.connect();
    half.write_all(b"GET /healthz HTTP/1.1\r\nHost: local")
        .expect("half a head");
    let begin = Instant::now();
    let mut rest = Vec::new();
    // Closed, politely or not.
    let _ = half.read_to_end(&mut rest);
    assert!(
        begin.elapsed() < Duration::from_secs(30),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(server.ask("GET /healthz", b"").status, 200);
}
