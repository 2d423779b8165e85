//! Where the generator's latents v come from: images through the frozen tokenizer as they are needed, or a cache.

use candle_core::{Device, Tensor};
use tracing::info_span;

use crate::data::loader::Loader;
use crate::error::{Context, Result};
use crate::model::tokenizer::Tokenizer;

/// A micro-batch of the generator.
pub struct LatentBatch {
    /// [B,h,w,d] f32
    pub v: Tensor,
    pub labels: Vec<u32>,
    /// The examples' running numbers.
    pub indices: Vec<u64>,
}

pub enum Latents {
    /// Batches of images of a micro-batch's size.
    Encoded(Loader),
}

impl Latents {
    pub fn next(&mut self, tokenizer: &Tokenizer, device: &Device) -> Result<LatentBatch> {
        match self {
            Latents::Encoded(loader) => {
                let batch = info_span!("data wait").in_scope(|| loader.next());
                let batch = batch.context("the loader has ended")??;
                let images = batch.images.to_device(device)?;
                Ok(LatentBatch {
                    v: info_span!("encode").in_scope(|| tokenizer.encode(&images))?,
                    labels: batch.labels,
                    indices: batch.indices,
                })
            }
        }
    }
}
