//! Command lines as text that a shell takes.

/// `text` as one word.
pub fn word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=@%+".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.to_string(),
        false => in_quotes(text),
    }
}

/// The same, in quotes in any case.
pub fn in_quotes(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// A number as one would type it: 0.7, and not the 300 zeros of 1e-300.
pub fn number(x: f64) -> String {
    match x == 0.0 || (1e-5..1e16).contains(&x.abs()) {
        true => format!("{x}"),
        false => format!("{x:e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_can_be_given_to_a_shell_again() {
        assert_eq!(word("--set"), "--set");
        assert_eq!(word("data/train-*.tar"), "'data/train-*.tar'");
        assert_eq!(word("it's"), "'it'\\''s'");
        assert_eq!(word(""), "''");
        for (x, text) in [(4.0, "4"), (-0.7, "-0.7"), (0.0, "0"), (2e9, "2000000000")] {
            assert_eq!(number(x), text);
        }
        for (x, text) in [(1e-300, "1e-300"), (1.5e300, "1.5e300"), (f64::NAN, "NaN")] {
            assert_eq!(number(x), text);
        }
    }
}
