//! What clients are told of the model, and what their requests are held against.

use std::path::PathBuf;

use axum::body::Bytes;
use serde_json::{Value, json};

use super::Settings;
use super::routes::UPLOAD_BYTES;
use crate::config::SampleConfig;
use crate::data::Classes;
use crate::error::Result;
use crate::sample::Pretrained;

pub struct Facts {
    pub model: PathBuf,
    pub classes: Classes,
    pub sample: SampleConfig,
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
        let listing = json!({
            "model": {
                "path": model.path.display().to_string(),
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
            model: model.path.clone(),
            classes: model.classes.clone(),
            sample: sample.clone(),
            steps: config.quantizer.steps,
            num: settings.num,
            listing: serde_json::to_vec(&listing)?.into(),
        })
    }
}
