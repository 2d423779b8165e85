//! Errors that say what went wrong, what was expected, and the remedy in one `hint:` line.

use std::fmt;

pub use anyhow::{Context, Error, Result};

/// What an error means for the process; decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The operation failed: exit code 1.
    Failed,
    /// A disk, or a quota, is full: exit code 1. It may have room again later.
    DiskFull,
    /// The command line or the configuration is wrong: exit code 2.
    Usage,
    /// A signal stopped a run after its checkpoint was written: exit code 130.
    Interrupted,
}

impl Kind {
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Failed | Kind::DiskFull => 1,
            Kind::Usage => 2,
            Kind::Interrupted => 130,
        }
    }
}

/// An error with its remedy.
#[derive(Debug)]
pub struct Hinted {
    message: String,
    hint: String,
    kind: Kind,
}

impl fmt::Display for Hinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Hinted {}

/// The operation failed; `hint` says what the user can do about it.
pub fn hinted(message: impl Into<String>, hint: impl Into<String>) -> Error {
    new(Kind::Failed, message, hint)
}

/// A disk, or a quota, is full; `hint` says what the user can do about it.
pub fn disk_full(message: impl Into<String>, hint: impl Into<String>) -> Error {
    new(Kind::DiskFull, message, hint)
}

/// The user asked for something impossible; `hint` says what is possible.
pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Error {
    new(Kind::Usage, message, hint)
}

/// A signal ended the run; `hint` says how to continue it.
pub fn interrupted(message: impl Into<String>, hint: impl Into<String>) -> Error {
    new(Kind::Interrupted, message, hint)
}

fn new(kind: Kind, message: impl Into<String>, hint: impl Into<String>) -> Error {
    Hinted {
        message: message.into(),
        hint: hint.into(),
        kind,
    }
    .into()
}

/// `error` with another hint, if the caller knows a better remedy.
pub fn rehinted(error: &Error, hint: impl Into<String>) -> Error {
    let kind = cause(error).map_or(Kind::Failed, |h| h.kind);
    new(kind, format!("{error:#}"), hint)
}

/// The hint of `error`.
pub fn hint(error: &Error) -> Option<&str> {
    cause(error).map(|h| h.hint.as_str())
}

/// `error` where another process prints it.
pub fn said(error: &Error) -> Error {
    new(cause(error).map_or(Kind::Failed, |h| h.kind), "", "")
}

/// Whether a signal caused `error`.
pub fn is_interrupted(error: &Error) -> bool {
    cause(error).is_some_and(|h| h.kind == Kind::Interrupted)
}

/// Whether a full disk, or quota, caused `error`.
pub fn is_disk_full(error: &Error) -> bool {
    cause(error).is_some_and(|h| h.kind == Kind::DiskFull)
}

fn cause(error: &Error) -> Option<&Hinted> {
    error.chain().find_map(|e| e.downcast_ref::<Hinted>())
}

/// The text for stderr and the exit code of `error`.
///
/// The chain of contexts becomes one line, outermost first; the hint follows on its own line. The
/// text of [`said`] is empty.
pub fn report(error: &Error) -> (String, u8) {
    let chain: Vec<String> = error.chain().map(|e| e.to_string()).collect();
    let mut text = format!("error: {}", chain.join(": "));
    let hinted = cause(error);
    if hinted.is_some_and(|h| h.message.is_empty()) {
        text.clear();
    }
    if let Some(h) = hinted
        && !h.hint.is_empty()
    {
        text.push_str("\nhint: ");
        text.push_str(&h.hint);
    }
    let kind = hinted.map_or(Kind::Failed, |h| h.kind);
    (text, kind.exit_code())
}

/// The name among `known` that is nearest to `name`, if it is close enough to be what was meant.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|k| (strsim::jaro_winkler(name, k), k))
        .filter(|(score, _)| *score > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, k)| k)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_prints_the_chain_then_the_hint() {
        let error = usage("unknown key `depht`", "did you mean `depth`?").context("run.toml");
        let (text, code) = report(&error);
        assert_eq!(
            text,
            "error: run.toml: unknown key `depht`\nhint: did you mean `depth`?"
        );
        assert_eq!(code, 2);
    }

    #[test]
    fn another_remedy_keeps_the_words_and_the_exit_code() {
        let error = usage("unknown key", "did you mean `depth`?").context("run.toml");
        let (text, code) = report(&rehinted(&error, "leave it out"));
        assert_eq!(text, "error: run.toml: unknown key\nhint: leave it out");
        assert_eq!(code, 2);
    }

    #[test]
    fn what_another_process_says_is_said_once() {
        let error = interrupted("interrupted after step 3", "continue with --resume");
        assert_eq!(report(&said(&error)), (String::new(), 130));
    }

    #[test]
    fn nearest_finds_a_typing_error_and_nothing_else() {
        assert_eq!(nearest("depht", ["depth", "width"]), Some("depth"));
        assert_eq!(nearest("zzz", ["depth", "width"]), None);
    }
}
