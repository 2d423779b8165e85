//! The configurations that are built into the binary: `--config NAME`.

use std::path::Path;

use crate::error::{Result, nearest, usage};

/// Name and text of every preset.
pub const PRESETS: [(&str, &str); 8] = [
    ("smoke", include_str!("../../configs/smoke.toml")),
    ("demo", include_str!("../../configs/demo.toml")),
    (
        "tiny-imagenet-64",
        include_str!("../../configs/tiny-imagenet-64.toml"),
    ),
    (
        "tiny-imagenet-64-small",
        include_str!("../../configs/tiny-imagenet-64-small.toml"),
    ),
    (
        "imagenet256-vae",
        include_str!("../../configs/imagenet256-vae.toml"),
    ),
    (
        "imagenet256-d12",
        include_str!("../../configs/imagenet256-d12.toml"),
    ),
    (
        "imagenet256-d16",
        include_str!("../../configs/imagenet256-d16.toml"),
    ),
    (
        "imagenet256-d20",
        include_str!("../../configs/imagenet256-d20.toml"),
    ),
];

/// The text of the file at `source` or, if there is none, of the preset of that name.
pub(super) fn text(source: &str) -> Result<String> {
    let path = Path::new(source);
    if path.is_file() {
        return std::fs::read_to_string(path)
            .map_err(|e| usage(format!("{source}: {e}"), "a configuration is a TOML file"));
    }
    if let Some((_, text)) = PRESETS.iter().find(|(name, _)| *name == source) {
        return Ok(text.to_string());
    }
    let names = PRESETS.map(|(name, _)| name);
    let hint = match nearest(source, names) {
        Some(name) => format!("did you mean the preset `{name}`?"),
        None => format!("presets: {}", names.join(", ")),
    };
    Err(usage(
        format!("there is no configuration file or preset `{source}`"),
        hint,
    ))
}
