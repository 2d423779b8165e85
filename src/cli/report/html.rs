//! Text in HTML: what comes from files is never markup.

use std::fmt::Write;

use serde_json::Value;

/// `text` for the content of an element or an attribute in quotes. Control characters, and those
/// that turn the direction of writing, are replaced: a name must not look like another.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                out.push('\u{fffd}');
            }
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// `value` for a script element of type application/json, which no text in it can end.
pub(super) fn json(value: &Value) -> String {
    let text = value.to_string();
    text.replace('<', "\\u003c").replace('>', "\\u003e")
}

/// A number of at most five digits that count, thousands set apart.
pub(super) fn number(x: f64) -> String {
    if !x.is_finite() {
        return "not finite".to_string();
    }
    let size = x.abs();
    if x == 0.0 {
        return "0".to_string();
    }
    if !(1e-4..1e15).contains(&size) {
        return format!("{x:.2e}");
    }
    if size >= 1000.0 {
        return grouped(x.round());
    }
    let digits = 3 - size.log10().floor() as i32;
    let text = format!("{x:.*}", digits.clamp(0, 8) as usize);
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text,
    }
}

/// A whole number in groups of three digits.
pub(super) fn grouped(x: f64) -> String {
    let digits = format!("{:.0}", x.abs());
    let mut out = String::new();
    if x < 0.0 {
        out.push('-');
    }
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Seconds as people say them.
pub(super) fn duration(seconds: f64) -> String {
    match seconds.max(0.0) {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}

/// Bytes as people say them.
pub(super) fn bytes(count: u64) -> String {
    match count as f64 {
        x if x < 1e6 => format!("{:.0} kB", x / 1e3),
        x if x < 1e9 => format!("{:.1} MB", x / 1e6),
        x => format!("{:.2} GB", x / 1e9),
    }
}

/// A table; its cells are markup.
pub(super) fn table(class: &str, head: &[String], rows: &[(String, Vec<String>)]) -> String {
    let mut out = format!("<div class=\"wide\"><table class=\"{class}\"><thead><tr>");
    for cell in head {
        let _ = write!(out, "<th scope=\"col\">{cell}</th>");
    }
    out.push_str("</tr></thead><tbody>\n");
    for (class, cells) in rows {
        let _ = write!(out, "<tr class=\"{class}\">");
        for (at, cell) in cells.iter().enumerate() {
            match at {
                0 => {
                    let _ = write!(out, "<th scope=\"row\">{cell}</th>");
                }
                _ => {
                    let _ = write!(out, "<td>{cell}</td>");
                }
            }
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_a_file_is_markup() {
        let text = escape("<script>alert('1')</script> & \"x\" \u{1b}[0m \u{202e}gnp");
        assert!(
            !text.contains(['<', '>', '"', '\'', '\u{1b}', '\u{202e}']),
            "{text}"
        );
        let hostile = serde_json::json!({"name": "</script><script>alert(1)</script><!--"});
        let text = json(&hostile);
        assert!(!text.contains('<'), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).ok(), Some(hostile));
    }

    #[test]
    fn numbers_are_short() {
        for (x, text) in [
            (0.0, "0"),
            (0.371_94, "0.3719"),
            (21.4245, "21.42"),
            (8658.19, "8,658"),
            (-1_234_567.0, "-1,234,567"),
            (3.894e-7, "3.89e-7"),
            (100.0, "100"),
            (0.5, "0.5"),
            (f64::NAN, "not finite"),
        ] {
            assert_eq!(number(x), text);
        }
        assert_eq!(duration(3753.0), "63 min");
        assert_eq!(bytes(1_500_000), "1.5 MB");
    }
}
