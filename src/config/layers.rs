//! Layers of configuration, merged as TOML tables key by key. A file that sets one key of a section
//! leaves the section's other keys at their defaults.

use toml::{Table, Value};

use super::Config;
use crate::error::{Context, Result, nearest, usage};

/// Two keys of a training section for the same setting: a layer that sets one unsets the other.
const LENGTHS: [&str; 2] = ["steps", "epochs"];

fn is_length(section: &str, key: &str) -> bool {
    section.starts_with("train_") && LENGTHS.contains(&key)
}

/// The merged layers so far.
pub(super) struct Layers {
    merged: Table,
    schema: Table,
}

impl Layers {
    pub(super) fn of_defaults() -> Result<Self> {
        Ok(Self {
            merged: Table::try_from(Config::default())?,
            schema: schema()?,
        })
    }

    /// Adds a layer from a file's text.
    pub(super) fn add(&mut self, text: &str) -> Result<()> {
        let table: Table = toml::from_str(text)
            .map_err(|e| usage(format!("not valid TOML\n{e}"), "see configs/ for examples"))?;
        self.add_table(table)
    }

    pub(super) fn add_table(&mut self, table: Table) -> Result<()> {
        for (section, value) in table {
            self.section(&section)?;
            let Value::Table(keys) = value else {
                return Err(usage(
                    format!("`{section}` is a section, found {value}"),
                    format!("write [{section}] on a line of its own"),
                ));
            };
            if keys.keys().any(|key| is_length(&section, key)) {
                self.unset_lengths(&section);
            }
            for (key, value) in keys {
                self.put(&section, &key, value)?;
            }
        }
        Ok(())
    }

    /// Adds one `section.key=value`. The value is TOML; a bare word is a string; a single value or
    /// a comma-separated list becomes a list where the key takes one; `none` unsets an optional
    /// key.
    pub(super) fn set(&mut self, assignment: &str) -> Result<()> {
        let form = "the form is --set section.key=value, as in --set quantizer.steps=5";
        let Some((name, value)) = assignment.split_once('=') else {
            return Err(usage("there is no `=`", form));
        };
        let Some((section, key)) = name.trim().split_once('.') else {
            return Err(usage(format!("`{}` names no section", name.trim()), form));
        };
        let optional = self.is_optional(section, key)?;
        if is_length(section, key) {
            self.unset_lengths(section);
        }
        if optional && value.trim() == "none" {
            self.section(section)?.remove(key);
            return Ok(());
        }
        let value = parse(value.trim(), self.wanted(section, key)?);
        self.put(section, key, value)
    }

    pub(super) fn finish(self) -> Result<Config> {
        let config: Config = self
            .merged
            .try_into()
            .map_err(|e| usage(one_line(&e.to_string()), ""))?;
        config.validate()?;
        Ok(config)
    }

    fn put(&mut self, section: &str, key: &str, value: Value) -> Result<()> {
        let wanted = self.wanted(section, key)?;
        if !fits(&value, wanted) {
            return Err(usage(
                format!(
                    "`{section}.{key}`: expected {}, found {value}",
                    kind(wanted)
                ),
                format!("for example {key} = {wanted}"),
            ));
        }
        self.section(section)?.insert(key.to_string(), value);
        Ok(())
    }

    fn unset_lengths(&mut self, section: &str) {
        if let Some(Value::Table(table)) = self.merged.get_mut(section) {
            for length in LENGTHS {
                table.remove(length);
            }
        }
    }

    fn section(&mut self, section: &str) -> Result<&mut Table> {
        let error = self.unknown_section(section);
        match self.merged.get_mut(section) {
            Some(Value::Table(table)) => Ok(table),
            _ => Err(error),
        }
    }

    /// An example value of the key, which gives its type.
    fn wanted(&self, section: &str, key: &str) -> Result<&Value> {
        match self.schema.get(section) {
            Some(Value::Table(keys)) => keys
                .get(key)
                .ok_or_else(|| self.unknown_key(section, key, keys)),
            _ => Err(self.unknown_section(section)),
        }
    }

    /// Whether the key is optional and has no default.
    fn is_optional(&self, section: &str, key: &str) -> Result<bool> {
        self.wanted(section, key)?;
        let defaults = Table::try_from(Config::default())?;
        let by_default = defaults.get(section).and_then(|s| s.get(key)).is_some();
        Ok(!by_default || is_length(section, key))
    }

    fn unknown_section(&self, section: &str) -> crate::error::Error {
        let names = || self.schema.keys().map(String::as_str);
        let hint = match nearest(section, names()) {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("sections: {}", names().collect::<Vec<_>>().join(", ")),
        };
        usage(format!("there is no section `{section}`"), hint)
    }

    fn unknown_key(&self, section: &str, key: &str, keys: &Table) -> crate::error::Error {
        let elsewhere = self.schema.iter().find(|(_, s)| s.get(key).is_some());
        let hint = match (nearest(key, keys.keys().map(String::as_str)), elsewhere) {
            (_, Some((other, _))) => format!("did you mean `{other}.{key}`?"),
            (Some(name), None) => format!("did you mean `{section}.{name}`?"),
            (None, None) => format!(
                "keys of [{section}]: {}",
                keys.keys().cloned().collect::<Vec<_>>().join(", ")
            ),
        };
        usage(format!("there is no key `{section}.{key}`"), hint)
    }
}

/// Every key with an example value: the defaults, with all optional keys filled in.
pub(super) fn schema() -> Result<Table> {
    let mut config = Config::default();
    config.data.train = vec!["data/train".into()];
    config.data.val = vec!["data/val".into()];
    config.loss.vgg = Some("vgg16.safetensors".into());
    config.loss.lpips = Some("lpips_vgg_lin.safetensors".into());
    config.generator.width = Some(768);
    config.generator.heads = Some(12);
    config.generator.mix_dim = Some(64);
    config.generator.adaln_rank = Some(64);
    config.generator.classes = Some(1000);
    for train in [&mut config.train_vae, &mut config.train_gen] {
        train.steps = Some(1000);
        train.epochs = Some(10.0);
    }
    Table::try_from(config).context("the defaults have a TOML form")
}

fn parse(text: &str, wanted: &Value) -> Value {
    let bare = || Value::String(text.to_string());
    match wanted {
        Value::String(_) => literal(text).filter(Value::is_str).unwrap_or_else(bare),
        Value::Array(items) => match literal(text) {
            Some(list @ Value::Array(_)) => list,
            Some(one) if !text.contains(',') => Value::Array(vec![one]),
            _ => literal(&format!("[{text}]")).unwrap_or_else(|| {
                let words = text.split(',').map(str::trim);
                match items.first() {
                    Some(Value::String(_)) => Value::Array(words.map(Value::from).collect()),
                    _ => bare(),
                }
            }),
        },
        _ => literal(text).unwrap_or_else(bare),
    }
}

/// `text` as one TOML value.
fn literal(text: &str) -> Option<Value> {
    let mut table: Table = toml::from_str(&format!("value = {text}")).ok()?;
    (table.len() == 1).then(|| table.remove("value")).flatten()
}

fn fits(value: &Value, wanted: &Value) -> bool {
    match (value, wanted) {
        (Value::Integer(n), Value::Integer(_)) => *n >= 0,
        (Value::Integer(_), Value::Float(_)) => true,
        (Value::Array(found), Value::Array(wanted)) => wanted
            .first()
            .is_none_or(|wanted| found.iter().all(|value| fits(value, wanted))),
        _ => value.same_type(wanted),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a string",
        Value::Integer(_) => "a whole number of at least 0",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Array(items) if items.first().is_some_and(Value::is_str) => "a list of strings",
        Value::Array(_) => "a list of numbers",
        Value::Datetime(_) | Value::Table(_) => "another type",
    }
}

/// serde's message with the key in front, from "unknown variant …\nin `schedule.kind`\n".
fn one_line(message: &str) -> String {
    let message = message.trim();
    match message.split_once("\nin `") {
        Some((what, key)) => format!("`{}: {what}", key.lines().next().unwrap_or(key)),
        None => message.replace('\n', " "),
    }
}
