//! Labels in files beside images: what a `.cls`, a `.json` and a `.txt` say of the class.

use serde::Deserializer;
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::part::{ClassName, Label};

/// Beyond it a class's number is a mistake: there is a table of them all.
const MAX_CLASSES: u32 = 1_000_000;

/// A `.cls`: a number or a name, with blanks and a line's end around it.
pub(super) fn cls(text: &[u8]) -> Label {
    let Ok(text) = std::str::from_utf8(text) else {
        return Label::Bad("the class is no text".to_string());
    };
    class_name(text.trim_start_matches('\u{FEFF}'))
}

/// A `.txt`: a class only if it is a number or a wnid, for it may as well be a caption.
pub(super) fn text(text: &[u8]) -> Label {
    let text = std::str::from_utf8(text).unwrap_or_default();
    let text = text.trim_start_matches('\u{FEFF}').trim();
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match class_name(text) {
        Label::Field(class) if is_number || is_wnid(text) => Label::Text(class),
        _ => Label::Silent,
    }
}

/// ImageNet's names of classes: `n` and eight digits.
pub(super) fn is_wnid(name: &str) -> bool {
    let digits = name.strip_prefix('n');
    digits.is_some_and(|digits| digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_digit()))
}

fn class_name(text: &str) -> Label {
    let text = text.trim();
    if text.is_empty() {
        return Label::Bad("the class is empty".to_string());
    }
    if text.contains(char::is_control) {
        let lines = text.lines().count();
        return Label::Bad(format!("a class is one line of text, found {lines}"));
    }
    let looks_like_a_number = text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c))
        && text.parse::<f64>().is_ok();
    match (looks_like_a_number, text.parse::<u32>()) {
        (false, _) => Label::Field(ClassName::Name(text.into())),
        (true, Ok(number)) if number < MAX_CLASSES => Label::Field(ClassName::Number(number)),
        (true, _) => Label::Bad(format!("class {text} is not in 0..{MAX_CLASSES}")),
    }
}

/// A `.json` as Python reads and writes it: its `label`, else its `cls`.
///
/// All else in it may be what it likes: NaN, infinities, numbers and depths beyond any type, half
/// of a surrogate pair.
pub(super) fn json(text: &[u8]) -> Label {
    let text = match decoded(text) {
        Some(text) => finite(&text),
        None => return Label::Unreadable("its text is not UTF-8".to_string()),
    };
    let mut json = serde_json::Deserializer::from_str(&text);
    let class = json.deserialize_any(Class).and_then(|class| {
        json.end()?;
        Ok(class)
    });
    match class {
        Err(e) => Label::Unreadable(format!("not JSON ({e})")),
        Ok(None | Some(Value::Null)) => Label::Silent,
        Ok(Some(Value::String(name))) => class_name(&name),
        Ok(Some(Value::Number(number))) => match number.as_f64() {
            // 3.0 is what a table of floats writes for 3.
            Some(x) if x.fract() == 0.0 && x.abs() < 1e15 => class_name(&format!("{x:.0}")),
            _ => class_name(&number.to_string()),
        },
        Ok(Some(other)) => Label::Bad(format!("a class is a number or a string, found {other}")),
    }
}

/// JSON's text: UTF-8, or UTF-16 and UTF-32 as Python tells them by where the zeros are.
fn decoded(bytes: &[u8]) -> Option<String> {
    let utf_16 = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let pairs = bytes.chunks_exact(2).map(|two| unit([two[0], two[1]]));
        Some(String::from_utf16_lossy(&pairs.collect::<Vec<_>>()))
    };
    let utf_32 = |bytes: &[u8], unit: fn([u8; 4]) -> u32| {
        let units = bytes
            .chunks_exact(4)
            .map(|four| unit([four[0], four[1], four[2], four[3]]));
        Some(
            units
                .map(|c| char::from_u32(c).unwrap_or('\u{FFFD}'))
                .collect(),
        )
    };
    match bytes {
        [0xEF, 0xBB, 0xBF, rest @ ..] => String::from_utf8(rest.to_vec()).ok(),
        [0xFF, 0xFE, 0, 0, rest @ ..] => utf_32(rest, u32::from_le_bytes),
        [0, 0, 0xFE, 0xFF, rest @ ..] => utf_32(rest, u32::from_be_bytes),
        [0xFF, 0xFE, rest @ ..] => utf_16(rest, u16::from_le_bytes),
        [0xFE, 0xFF, rest @ ..] => utf_16(rest, u16::from_be_bytes),
        [0, 0, 0, _, ..] => utf_32(bytes, u32::from_be_bytes),
        [_, 0, 0, 0, ..] => utf_32(bytes, u32::from_le_bytes),
        [0, _, ..] => utf_16(bytes, u16::from_be_bytes),
        [_, 0, ..] => utf_16(bytes, u16::from_le_bytes),
        _ => String::from_utf8(bytes.to_vec()).ok(),
    }
}

/// JSON with null for NaN, Infinity and -Infinity, which Python writes and JSON does not have.
fn finite(json: &str) -> String {
    let (mut text, mut rest, mut in_string) = (String::with_capacity(json.len()), json, false);
    while let Some(next) = rest.chars().next() {
        let word = ["NaN", "Infinity", "-Infinity"]
            .into_iter()
            .find(|word| !in_string && rest.starts_with(word));
        let length = match word {
            Some(word) => {
                text.push_str("null");
                word.len()
            }
            // What follows a backslash ends no string.
            None if in_string && next == '\\' => {
                let length = 1 + rest[1..].chars().next().map_or(0, char::len_utf8);
                text.push_str(&rest[..length]);
                length
            }
            None => {
                in_string ^= next == '"';
                text.push(next);
                next.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    text
}

/// Takes the class out of any JSON value and skips the rest without reading it. The last of equal
/// keys counts.
struct Class;

impl<'de> Visitor<'de> for Class {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<Value>, A::Error> {
        let (mut label, mut cls) = (None, None);
        while let Some(key) = map.next_key::<Key>()? {
            match key {
                Key::Label => label = Some(map.next_value()?),
                Key::Cls => cls = Some(map.next_value()?),
                Key::Other => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        let label = label.filter(|label: &Value| !label.is_null());
        Ok(label.or(cls))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Option<Value>, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Option<Value>, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Option<Value>, E> {
        Ok(None)
    }

    fn visit_str<E>(self, _: &str) -> Result<Option<Value>, E> {
        Ok(None)
    }

    /// The whole file is the class.
    fn visit_u64<E>(self, number: u64) -> Result<Option<Value>, E> {
        Ok(Some(Value::from(number)))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Option<Value>, E> {
        Ok(Some(Value::from(number)))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Option<Value>, E> {
        Ok(Some(Value::from(number)))
    }
}

/// A key of the object, told without keeping it.
enum Key {
    Label,
    Cls,
    Other,
}

impl<'de> serde::Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = Key;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a key")
            }

            // A key may hold half of a surrogate pair, which bytes can and text cannot.
            fn visit_bytes<E>(self, name: &[u8]) -> Result<Key, E> {
                Ok(match name {
                    b"label" => Key::Label,
                    b"cls" => Key::Cls,
                    _ => Key::Other,
                })
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Key, E> {
                self.visit_bytes(name.as_bytes())
            }
        }
        deserializer.deserialize_bytes(Name)
    }
}
