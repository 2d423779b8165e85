//! A server of the program under test, and the little of HTTP that its tests need.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A running `rdpm serve`; it ends with its test.
pub struct Server {
    pub child: Child,
    pub port: u16,
    _stdout: BufReader<ChildStdout>,
}

impl Server {
    /// With the model and the options of a folder, at a free port.
    pub fn start(folder: &Path, options: &str) -> Self {
        let mut child = command(
            folder,
            &format!("serve --model model.safetensors --port 0 {options}"),
        )
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("its address");
        let port = line.trim().trim_end_matches('/').rsplit(':').next();
        let port = port.and_then(|port| port.parse().ok());
        Self {
            port: port.unwrap_or_else(|| panic!("no address: `{line}`")),
            child,
            _stdout: stdout,
        }
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("a connection");
        let long = Some(Duration::from_secs(120));
        stream.set_read_timeout(long).expect("a timeout");
        stream
    }

    /// Sends a request, and leaves the answer to be read.
    pub fn send(&self, head: &str, body: &[u8]) -> TcpStream {
        let mut stream = self.connect();
        let host = match head.to_ascii_lowercase().contains("\r\nhost:") {
            true => String::new(),
            false => format!("Host: 127.0.0.1:{}\r\n", self.port),
        };
        let length = body.len();
        let head = format!(
            "{} HTTP/1.1\r\n{host}Connection: close\r\nContent-Length: {length}\r\n{}\r\n",
            head.lines().next().unwrap_or_default(),
            head.lines()
                .skip(1)
                .map(|line| format!("{line}\r\n"))
                .collect::<String>(),
        );
        stream.write_all(head.as_bytes()).expect("a head is taken");
        // A refused body need not be taken to its end.
        let _ = stream.write_all(body);
        stream
    }

    pub fn ask(&self, head: &str, body: &[u8]) -> Answer {
        Answer::read(self.send(head, body))
    }

    /// `POST /v1/images` for JSON.
    pub fn draw(&self, body: &Value) -> Answer {
        self.ask(
            "POST /v1/images\r\nContent-Type: application/json",
            body.to_string().as_bytes(),
        )
    }

    /// The same, answered by events, not read.
    pub fn stream(&self, body: &Value) -> TcpStream {
        let head = "POST /v1/images\r\nContent-Type: application/json\r\nAccept: text/event-stream";
        self.send(head, body.to_string().as_bytes())
    }

    /// The value of a series of /metrics.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.ask("GET /metrics", b"").text();
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("no {name} in {text}"))
    }

    /// Waits until the series has the value.
    pub fn wait_for(&self, name: &str, value: f64) {
        let begin = Instant::now();
        while self.metric(name) != value {
            let patient = begin.elapsed() < Duration::from_secs(60);
            assert!(patient, "{name} is {} and not {value}", self.metric(name));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Peak memory in bytes.
    pub fn peak(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).expect("a running process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        kib.expect("Linux") * 1024
    }

    pub fn terminate(&self) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &id]).status();
        assert!(sent.expect("kill runs").success());
    }

    /// Its exit code, once it has ended.
    pub fn ended(&mut self) -> Option<i32> {
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn command(folder: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rdpm"));
    command
        .args(line.split_whitespace())
        .args(["--device", "cpu"])
        .current_dir(folder)
        .env_remove("RDPM_MODEL")
        .env_remove("RDPM_TOKEN")
        .env_remove("RUST_LOG");
    command
}

/// Runs the program to its end.
pub fn rdpm(folder: &Path, line: &str) {
    let output = command(folder, line).output().expect("the binary starts");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "rdpm {line}\n{log}");
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// In lower case.
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// Reads to the end.
    pub fn read(stream: TcpStream) -> Self {
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let read = reader.read_line(&mut head).expect("a head");
            assert!(read > 0, "the connection closed after `{head}`");
        }
        let head = head.to_ascii_lowercase();
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
        let mut body = Vec::new();
        reader.read_to_end(&mut body).expect("a body");
        if head.contains("transfer-encoding: chunked") {
            body = whole(&body);
        }
        Self {
            status: status.expect("a status"),
            head,
            body,
        }
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("UTF-8")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// Its events and their data.
    pub fn events(&self) -> Vec<(String, Value)> {
        let text = self.text();
        let events = text.split("\n\n").filter(|event| !event.is_empty());
        let parts = events.map(|event| {
            let (name, data) = event.split_once('\n').expect("two lines");
            let data = data.strip_prefix("data: ").expect("data");
            let name = name.strip_prefix("event: ").expect("a name");
            (name.to_string(), serde_json::from_str(data).expect("JSON"))
        });
        parts.collect()
    }
}

/// A chunked body.
fn whole(mut rest: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let end = rest
            .windows(2)
            .position(|two| two == b"\r\n")
            .expect("a chunk's size");
        let size = std::str::from_utf8(&rest[..end]).expect("ASCII");
        let size = usize::from_str_radix(size, 16).expect("a size");
        if size == 0 {
            return all;
        }
        all.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 2 + size + 2..];
    }
}
