//! The facts as text: a headline, short lines, tables, the configuration as TOML.

use std::fmt::Write;

use serde_json::Value;

use super::facts::Facts;
use crate::config::Config;
use crate::error::Result;
use crate::train::estimate::thousands;

/// Facts with their own layout; each of the others takes one line.
const OWN_FORM: [&str; 10] = [
    "path",
    "kind",
    "format",
    "parameters",
    "config",
    "metrics",
    "provenance",
    "classes",
    "tensors",
    "files",
];

pub(super) fn render(facts: &Facts) -> Result<String> {
    let mut out = String::new();
    let text = |key: &str| facts.get(key).and_then(Value::as_str).unwrap_or_default();
    write!(out, "{}: {}", text("path"), text("kind"))?;
    if !text("format").is_empty() {
        write!(out, " ({})", text("format"))?;
    }
    out.push('\n');
    for (key, value) in facts {
        if !OWN_FORM.contains(&key.as_str()) && !is_empty(value) {
            writeln!(out, "  {key:<15} {}", plain(value))?;
        }
    }
    if let Some(classes) = facts.get("classes").and_then(Value::as_array) {
        writeln!(out, "  {:<15} {}", "classes", classes.len())?;
    }
    files(facts, &mut out)?;
    parameters(facts, &mut out)?;
    tensors(facts, &mut out)?;
    for key in ["metrics", "provenance"] {
        if let Some(value) = facts.get(key).filter(|v| !is_empty(v)) {
            writeln!(out, "\n{key}")?;
            tree(value, 1, &mut out)?;
        }
    }
    if let Some(config) = facts.get("config") {
        let config = Config::from_json(&config.to_string())?.to_toml()?;
        writeln!(out, "\nconfiguration\n{}", config.trim_end())?;
    }
    Ok(out)
}

fn files(facts: &Facts, out: &mut String) -> Result<()> {
    let Some(files) = facts.get("files").and_then(Value::as_object) else {
        return Ok(());
    };
    writeln!(out, "\nfiles (SHA-256)")?;
    for (name, file) in files {
        let verdict = match file["as_recorded"].as_bool() {
            Some(true) => "",
            Some(false) => "  DAMAGED: not the recorded one",
            None => "  not recorded",
        };
        writeln!(out, "  {name:<24} {}{verdict}", plain(&file["sha256"]))?;
    }
    Ok(())
}

fn parameters(facts: &Facts, out: &mut String) -> Result<()> {
    let Some(parts) = facts.get("parameters").and_then(Value::as_object) else {
        return Ok(());
    };
    writeln!(
        out,
        "\n{:<36} {:>8} {:>14}",
        "parameters", "tensors", "numbers"
    )?;
    let (mut tensors, mut numbers) = (0, 0);
    for (part, counts) in parts {
        let count = |key: &str| counts[key].as_u64().unwrap_or(0);
        let (t, n) = (count("tensors"), count("parameters"));
        writeln!(out, "  {part:<34} {t:>8} {:>14}", thousands(n))?;
        tensors += t;
        numbers += n;
    }
    writeln!(
        out,
        "  {:<34} {tensors:>8} {:>14}",
        "all",
        thousands(numbers)
    )?;
    Ok(())
}

fn tensors(facts: &Facts, out: &mut String) -> Result<()> {
    let Some(list) = facts.get("tensors").and_then(Value::as_object) else {
        return Ok(());
    };
    writeln!(out, "\ntensors")?;
    for (name, tensor) in list {
        writeln!(
            out,
            "  {name:<52} {:<5} {}",
            plain(&tensor["dtype"]),
            tensor["shape"]
        )?;
    }
    Ok(())
}

fn tree(value: &Value, depth: usize, out: &mut String) -> Result<()> {
    let Some(map) = value.as_object() else {
        return Ok(());
    };
    for (key, value) in map {
        let indent = "  ".repeat(depth);
        if value.is_object() {
            writeln!(out, "{indent}{key}")?;
            tree(value, depth + 1, out)?;
        } else {
            writeln!(out, "{indent}{key:<22} {}", plain(value))?;
        }
    }
    Ok(())
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        _ => false,
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}
