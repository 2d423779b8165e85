//! The configurations of runs beside each other.

use std::fmt::Write;

use super::html::{escape, table};
use super::run::RunFacts;

/// The keys of a configuration with their values as text, in the order of the file.
pub(super) fn flat(text: &str) -> Result<Vec<(String, String)>, String> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let first = error.message().lines().next().unwrap_or_default();
        format!("it is no TOML: {first}")
    })?;
    let mut found = Vec::new();
    for (section, value) in &table {
        match value {
            toml::Value::Table(keys) => {
                let keys = keys.iter();
                found.extend(keys.map(|(key, value)| (format!("{section}.{key}"), shown(value))));
            }
            value => found.push((section.clone(), shown(value))),
        }
    }
    Ok(found)
}

fn shown(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Float(x) => format!("{x}"),
        value => value.to_string(),
    }
}

/// All settings of these runs; those that differ stand first and are marked.
pub(super) fn section(runs: &[&RunFacts]) -> String {
    let with: Vec<&&RunFacts> = runs.iter().filter(|run| !run.config.is_empty()).collect();
    if with.is_empty() {
        return String::new();
    }
    let mut keys: Vec<&str> = Vec::new();
    for (key, _) in with.iter().flat_map(|run| &run.config) {
        if !keys.contains(&key.as_str()) {
            keys.push(key);
        }
    }
    let differs = |key: &str| {
        let first = with[0].setting(key);
        with.iter().any(|run| run.setting(key) != first)
    };
    let row = |key: &str, class: &str| {
        let value = |run: &&&RunFacts| run.setting(key).map_or("–".to_string(), escape);
        let cells = [escape(key)].into_iter().chain(with.iter().map(value));
        (class.to_string(), cells.collect::<Vec<String>>())
    };
    let names = with.iter().map(|run| escape(&run.name));
    let head: Vec<String> = ["setting".to_string()].into_iter().chain(names).collect();
    let mut out = String::new();
    let differing: Vec<_> = keys.iter().filter(|key| differs(key)).collect();
    if with.len() > 1 {
        let rows: Vec<_> = differing.iter().map(|key| row(key, "differs")).collect();
        match rows.is_empty() {
            true => out.push_str("<p>All settings are the same.</p>\n"),
            false => out.push_str(&table("settings", &head, &rows)),
        }
    }
    let rows: Vec<_> = keys
        .iter()
        .map(|key| row(key, if differs(key) { "differs" } else { "" }))
        .collect();
    let _ = write!(
        out,
        "<details><summary>All {} settings</summary>\n{}</details>\n",
        keys.len(),
        table("settings", &head, &rows)
    );
    out
}
