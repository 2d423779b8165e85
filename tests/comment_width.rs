//! Comments wrap at 100 columns, like code: rustfmt does not see to it.

use std::fs;
use std::path::Path;

const WIDTH: usize = 100;

/// Where the comment of a line begins, if it has one: `//` outside string literals.
fn comment(line: &str) -> Option<usize> {
    let bytes = line.as_bytes();
    let (mut quoted, mut i) = (false, 0);
    while i < bytes.len() {
        match bytes[i] {
            b'\\' if quoted => i += 1,
            // A character literal may hold a quote.
            b'\'' if !quoted && bytes.get(i + 1..i + 3) == Some(b"\"'") => i += 2,
            b'"' => quoted = !quoted,
            b'/' if !quoted && bytes.get(i + 1) == Some(&b'/') => return Some(i),
            _ => {}
        }
        i += 1;
    }
    None
}

/// Whether a line is too long because of its comment, which could be wrapped.
fn is_too_long(line: &str) -> bool {
    let comment = comment(line).map(|at| line[at..].trim_start_matches(['/', '!']).trim());
    line.chars().count() > WIDTH && comment.is_some_and(|words| words.contains(' '))
}

fn visit(path: &Path, found: &mut Vec<String>) {
    let name = path.to_str().expect("UTF-8").to_string();
    if path.is_dir() {
        let entries = fs::read_dir(path).expect("a folder");
        let mut paths: Vec<_> = entries.map(|e| e.expect("an entry").path()).collect();
        paths.sort();
        paths.iter().for_each(|path| visit(path, found));
    } else if name.ends_with(".rs") {
        let text = fs::read_to_string(path).expect("a source");
        let lines = text.lines().zip(1..).filter(|(line, _)| is_too_long(line));
        found.extend(lines.map(|(line, number)| format!("{name}:{number}: {}", line.trim())));
    }
}

#[test]
fn comments_fit_in_100_columns() {
    let mut found = Vec::new();
    for path in ["benches", "build", "build.rs", "examples", "src", "tests"] {
        visit(Path::new(path), &mut found);
    }
    assert!(
        found.is_empty(),
        "{} lines are longer than {WIDTH} columns:\n{}",
        found.len(),
        found.join("\n")
    );
}

#[test]
fn a_comment_is_told_from_a_string() {
    let long = "word ".repeat(30);
    for line in [
        format!("// {long}"),
        format!("    /// {long}"),
        format!("let x = '\"'; // {long}"),
        format!("let x = \"a \\\" b\"; // {long}"),
    ] {
        assert!(is_too_long(&line), "{line}");
    }
    for line in [
        format!("let x = \"// {long}\";"),
        format!("call({}) // short", "x, ".repeat(20)),
        format!("// https://{}", "x".repeat(120)),
    ] {
        assert!(!is_too_long(&line), "{line}");
    }
}
