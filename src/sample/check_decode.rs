//! Compares the decoding of few images, a captured graph, and of many with the same decoder's maps
//! rounded on the CPU: the same bytes, also where a graph is launched again for other latents.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::decode::LatentDecoder;
use super::image::named_rgb;
use super::sampler::decode;
use crate::config::Config;
use crate::model::generator::fused::check::randomize;
use crate::model::tokenizer::Tokenizer;
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::Row;
use crate::rng::{Purpose, normal};
use crate::store::Scope;

pub fn decoding(gpu: &Arc<Gpu>) -> Result<Vec<Row>> {
    let device = Device::Cuda(gpu.device().clone());
    let mut rows = Vec::new();
    for (size, patch) in [(48, 1), (32, 2), (512, 8)] {
        let mut config = Config::default();
        config.data.image_size = size;
        config.tokenizer.ch = 64;
        config.tokenizer.ch_mult = vec![1, 2];
        config.tokenizer.num_res_blocks = 1;
        config.tokenizer.patch = patch;
        let scope = Scope::init(3, &Device::Cpu);
        Tokenizer::new(&config, &scope)?;
        let params = scope.finish();
        randomize(&params)?;
        let scope = Scope::load(&params.tensors(), &device).frozen();
        let tokenizer = Tokenizer::new(&config, &scope)?.for_inference(&device);
        let decoder = LatentDecoder::new(&tokenizer);
        let (side, d) = (config.grid(), config.tokenizer.embed_dim);
        for (seed, count) in [(1, 1u64), (2, 1), (3, 3), (4, 3), (5, 70), (6, 1)] {
            let images: Vec<u64> = (0..count).collect();
            let z = normal(
                seed,
                Purpose::Noise,
                &images,
                1,
                &[side, side, d],
                &Device::Cpu,
            )?;
            rows.push(Row {
                name: format!(
                    "decoding: bytes of {count} images in patches of {patch} that differ, share"
                ),
                error: differing(&tokenizer, &decoder, &z.to_device(&device)?)?,
                allowed: 0.0,
            });
        }
    }
    Ok(rows)
}

fn differing(tokenizer: &Tokenizer, decoder: &LatentDecoder, z: &Tensor) -> Result<f64> {
    let name = |i: usize| format!("image {i}");
    let wrap = candle_core::Error::wrap;
    let expected = named_rgb(&decode(tokenizer, z).map_err(wrap)?, name).map_err(wrap)?;
    let found = decoder.images(z, name).map_err(wrap)?;
    if found.len() != expected.len() {
        candle_core::bail!("{} images, expected {}", found.len(), expected.len());
    }
    let (mut differing, mut all) = (0, 0);
    for (found, expected) in found.iter().zip(&expected) {
        if found.dimensions() != expected.dimensions() {
            candle_core::bail!(
                "{:?} pixels, expected {:?}",
                found.dimensions(),
                expected.dimensions()
            );
        }
        let pairs = found.as_raw().iter().zip(expected.as_raw());
        differing += pairs.filter(|(a, b)| a != b).count();
        all += expected.as_raw().len();
    }
    Ok(differing as f64 / all as f64)
}
