//! What clients are told of the model, and what their requests are held against.

use std::path::Path;

use axum::body::Bytes;
use serde_json::{Value, json};

use super::Settings;
use super::routes::UPLOAD_BYTES;
use crate::data::Classes;
use crate::error::Result;
use crate::sample::{Pretrained, SampleOptions};

pub struct Facts {
    /// Its path; for clients from elsewhere its last part alone.
    pub model: String,
    pub classes: Classes,
    /// The model's own.
    pub options: SampleOptions,
    pub steps: usize,
    /// Images of one request.
    pub num: usize,
    /// The answer to `GET /v1/classes`.
    pub listing: Bytes,
}

impl Facts {
    pub fn of(model: &Pretrained, settings: &Settings) -> Result<Self> {
        let (config, sample) = (&model.config, &model.config.sample);
        let classes: Vec<Value> = (0..model.classes.len() as u32)
            .filter_map(|index| {
                let class = model.classes.get(index)?;
                Some(json!({
                    "index": index,
                    "name": class.wnid,
                    "words": class.words,
                    "number": model.classes.imagenet_number(index),
                }))
            })
            .collect();
        let path = shown(&model.path, settings.token.is_some());
        let listing = json!({
            "model": {
                "path": path,
                "image_size": config.data.image_size,
                "steps": config.quantizer.steps,
                "codebook_size": config.quantizer.codebook_size,
                "sampler": model.sampler_name(),
                "version": env!("CARGO_PKG_VERSION"),
            },
            "defaults": {
                "cfg": sample.cfg,
                "cfg_schedule": sample.cfg_schedule,
                "temperature": sample.temperature,
                "gumbel": sample.gumbel,
            },
            "limits": {
                "num": settings.num,
                "queue": settings.queue,
                "upload_bytes": UPLOAD_BYTES,
            },
            "classes": classes,
        });
        Ok(Self {
            model: path,
            classes: model.classes.clone(),
            options: sample.into(),
            steps: config.quantizer.steps,
            num: settings.num,
            listing: serde_json::to_vec(&listing)?.into(),
        })
    }
}

/// The path as clients see it: whoever has a token need not see the folders of this machine.
fn shown(path: &Path, from_elsewhere: bool) -> String {
    let name = path.file_name().filter(|_| from_elsewhere);
    name.map_or(path.as_os_str(), |name| name)
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_from_elsewhere_see_no_folders() {
        let path = Path::new("/home/somebody/runs/gen");
        assert_eq!(shown(path, true), "gen");
        assert_eq!(shown(path, false), "/home/somebody/runs/gen");
        assert_eq!(shown(Path::new("builtin"), true), "builtin");
    }
}
