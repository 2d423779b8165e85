//! CLIP's ViT-B/32 image tower (Radford et al. 2021) for CLIP-FID as clean-fid computes it: images
//! → [B,512].
//!
//! The shorter side is resized to 224 by PIL's bicubic on 8-bit values, the center is cropped, then
//! CLIP's mean and deviation are applied. The feature is the projected class token, not normalized.
//! The network is candle-transformers', with batches [B,3,224,224]. Names are transformers'
//! (`vision_model.…`, `visual_projection.weight`) or the original's (`visual.…`).

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Module, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::clip::text_model::Activation;
use candle_transformers::models::clip::vision_model::{ClipVisionConfig, ClipVisionTransformer};
use image::{RgbImage, imageops};

use super::features::{FeatureNetwork, Rows, Tap};
use super::normalized::Normalized;
use super::weights::read_hashed;
use crate::data::resize::{Filter, resize};
use crate::error::{Result, hinted};

/// Name in reports.
pub const NAME: &str = "clip-vit-b-32";

const PIXELS: Normalized = Normalized {
    mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
    deviation: [0.268_629_54, 0.261_302_6, 0.275_777_1],
};

/// The image tower's prefix in transformers' files.
const TOWER: &str = "vision_model";
const PROJECTION: &str = "visual_projection.weight";

/// What the shapes of the weights do not determine.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    pub width: usize,
    pub depth: usize,
    pub heads: usize,
    pub features: usize,
    /// Image size in pixels.
    pub side: usize,
}

/// Patch size in pixels.
const PATCH: usize = 32;

impl Config {
    pub fn vit_b_32() -> Self {
        Self {
            width: 768,
            depth: 12,
            heads: 12,
            features: 512,
            side: 224,
        }
    }

    fn candle(self) -> ClipVisionConfig {
        ClipVisionConfig {
            embed_dim: self.width,
            activation: Activation::QuickGelu,
            intermediate_size: 4 * self.width,
            num_hidden_layers: self.depth,
            num_attention_heads: self.heads,
            projection_dim: self.features,
            num_channels: 3,
            image_size: self.side,
            patch_size: PATCH,
        }
    }
}

pub struct Clip {
    config: Config,
    tower: ClipVisionTransformer,
    /// [F,C]
    projection: Tensor,
    device: Device,
    weights_hash: String,
    taps: Vec<Tap>,
}

impl Clip {
    /// ViT-B/32 from transformers' file or the original.
    pub fn open(path: &Path, device: &Device) -> Result<Self> {
        let (tensors, hash) = read_hashed(path)?;
        let mut network = Self::new(Config::vit_b_32(), &tensors, device).map_err(|e| {
            hinted(
                format!("{}: {e}", path.display()),
                "expected CLIP's ViT-B/32 with its image tower: OpenAI's ViT-B-32.pt, or transformers' file",
            )
        })?;
        network.weights_hash = hash;
        Ok(network)
    }

    /// Errors: a tensor is missing or has another shape than `config` requires.
    pub fn new(
        config: Config,
        tensors: &BTreeMap<String, Tensor>,
        device: &Device,
    ) -> candle_core::Result<Self> {
        let mut weights = match tensors.contains_key("visual.conv1.weight") {
            true => from_original(tensors)?,
            false => tensors.clone(),
        };
        // candle-transformers would draw a missing class embedding at random.
        let class = format!("{TOWER}.embeddings.class_embedding");
        if !weights.contains_key(&class) {
            candle_core::bail!("parameter `{class}` is missing from the weights");
        }
        weights.retain(|name, _| name.starts_with(TOWER) || name == PROJECTION);
        let builder = VarBuilder::from_tensors(weights.into_iter().collect(), DType::F32, device);
        Ok(Self {
            tower: ClipVisionTransformer::new(builder.pp(TOWER), &config.candle())?,
            projection: builder.get((config.features, config.width), PROJECTION)?,
            config,
            device: device.clone(),
            weights_hash: String::new(),
            taps: vec![Tap {
                name: "projection",
                width: config.features,
            }],
        })
    }

    /// Normalized images [B,S,S,3] → [B,F].
    pub fn forward(&self, images: &Tensor) -> candle_core::Result<Tensor> {
        let images = images.permute((0, 3, 1, 2))?.contiguous()?;
        let class = self.tower.forward(&images)?.contiguous()?; // [B,C]
        class.matmul(&self.projection.t()?)
    }
}

impl FeatureNetwork for Clip {
    fn name(&self) -> &'static str {
        NAME
    }

    fn weights_hash(&self) -> &str {
        &self.weights_hash
    }

    fn preprocess(&self) -> &'static str {
        "pil-bicubic-224-centre"
    }

    fn taps(&self) -> &[Tap] {
        &self.taps
    }

    fn features(&self, images: &[RgbImage]) -> Result<Vec<Rows>> {
        let side = self.config.side as u32;
        let pixels = PIXELS.batch(images, side, &self.device, |image| square(image, side))?;
        Ok(vec![Rows {
            width: self.config.features,
            values: self.forward(&pixels)?.flatten_all()?.to_vec1()?,
        }])
    }
}

/// torchvision's `Resize(side)` and `CenterCrop(side)` of an 8-bit image.
fn square(image: &RgbImage, side: u32) -> RgbImage {
    let (w, h) = image.dimensions();
    let short = u64::from(w.min(h)).max(1);
    // The longer side is truncated to an integer, not rounded.
    let scaled = |length: u32| (u64::from(side) * u64::from(length) / short) as u32;
    let image = resize(image, scaled(w), scaled(h), Filter::Bicubic);
    // Python rounds halves to even.
    let begin = |length: u32| (f64::from(length - side) / 2.0).round_ties_even() as u32;
    let (x, y) = (begin(image.width()), begin(image.height()));
    imageops::crop_imm(&image, x, y, side, side).to_image()
}

/// Converts OpenAI's names of the image tower to transformers'.
fn from_original(
    tensors: &BTreeMap<String, Tensor>,
) -> candle_core::Result<BTreeMap<String, Tensor>> {
    let mut renamed = BTreeMap::new();
    for (name, tensor) in tensors {
        let Some(name) = name.strip_prefix("visual.") else {
            continue;
        };
        if name == "proj" {
            renamed.insert(PROJECTION.to_string(), tensor.t()?.contiguous()?);
            continue;
        }
        let name = match name.strip_prefix("transformer.resblocks.") {
            None => name
                .replace("class_embedding", "embeddings.class_embedding")
                .replace(
                    "positional_embedding",
                    "embeddings.position_embedding.weight",
                )
                .replace("conv1", "embeddings.patch_embedding")
                .replace("ln_pre", "pre_layrnorm")
                .replace("ln_post", "post_layernorm"),
            Some(block) => format!("encoder.layers.{block}")
                .replace("attn.", "self_attn.")
                .replace("ln_", "layer_norm")
                .replace("c_fc", "fc1")
                .replace("c_proj", "fc2"),
        };
        match name.split_once("in_proj_") {
            None => {
                renamed.insert(format!("{TOWER}.{name}"), tensor.clone());
            }
            // Query, key and value are one tensor.
            Some((attention, part)) => {
                for (which, rows) in ["q", "k", "v"].iter().zip(tensor.chunk(3, 0)?) {
                    renamed.insert(format!("{TOWER}.{attention}{which}_proj.{part}"), rows);
                }
            }
        }
    }
    Ok(renamed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_side_is_cut_and_the_middle_rounds_to_even() {
        let image = RgbImage::from_fn(9, 30, |_, y| image::Rgb([y as u8 * 8; 3]));
        // 8·30/9 = 26.67 becomes 26; (26 − 8)/2 = 9.
        let expected = resize(&image, 8, 26, Filter::Bicubic);
        let found = square(&image, 8);
        assert_eq!(found.dimensions(), (8, 8));
        assert_eq!(found.get_pixel(0, 0), expected.get_pixel(0, 9));
        // 8·17/13 = 10.46 becomes 10, (11 − 8)/2 = 1.5 becomes 2.
        let image = RgbImage::from_fn(11, 8, |x, _| image::Rgb([x as u8; 3]));
        assert_eq!(square(&image, 8).get_pixel(0, 0)[0], 2);
    }
}
