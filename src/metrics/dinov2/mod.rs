//! DINOv2's ViT-L/14 (Oquab et al. 2023), whose class token is the feature of FD-DINOv2 (Stein et
//! al. 2023): images → [B,1024].
//!
//! x = [class token ; patches] + positions; a block is x += γ₁·attention(norm1(x)), x +=
//! γ₂·fc2(gelu(fc1(norm2(x)))), with the exact GELU and eps 1e-6; the feature is the class token
//! after the last norm. Names are those of the original state dict (`dinov2_vitl14_pretrain.pth`).

mod positions;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use image::RgbImage;

use super::features::{FeatureNetwork, Rows, Tap};
use super::normalized::Normalized;
use super::weights::read_hashed;
use crate::data::resize::{Filter, resize};
use crate::error::{Result, hinted};
use crate::ops::{self, Padding};
use crate::store::{Init, Scope};

/// Name in reports.
pub const NAME: &str = "dinov2-vit-l-14";

const EPS: f64 = 1e-6;

/// ImageNet's mean and deviation.
const PIXELS: Normalized = Normalized {
    mean: [0.485, 0.456, 0.406],
    deviation: [0.229, 0.224, 0.225],
};

/// What the shapes of a vision transformer's weights do not determine.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    pub width: usize,
    pub depth: usize,
    pub heads: usize,
    /// Patches per side during its training.
    pub trained: usize,
    /// Patches per side of its input here.
    pub patches: usize,
}

/// Patch size in pixels.
const PATCH: usize = 14;

impl Config {
    /// ViT-L/14, trained at 518 pixels, used at 224.
    pub fn large() -> Self {
        Self {
            width: 1024,
            depth: 24,
            heads: 16,
            trained: 37,
            patches: 16,
        }
    }
}

/// A weight [O,I] and its bias [O]; or weight and bias of a norm.
type Pair = (Tensor, Tensor);

struct Block {
    norm1: Pair,
    qkv: Pair,
    proj: Pair,
    norm2: Pair,
    fc1: Pair,
    fc2: Pair,
}

impl Block {
    fn new(width: usize, scope: &Scope) -> candle_core::Result<Self> {
        let (attn, mlp) = (scope.push("attn"), scope.push("mlp"));
        Ok(Self {
            norm1: norm(width, &scope.push("norm1"))?,
            qkv: linear(width, 3 * width, &attn.push("qkv"))?,
            proj: scaled(
                linear(width, width, &attn.push("proj"))?,
                &scope.push("ls1"),
            )?,
            norm2: norm(width, &scope.push("norm2"))?,
            fc1: linear(width, 4 * width, &mlp.push("fc1"))?,
            fc2: scaled(
                linear(4 * width, width, &mlp.push("fc2"))?,
                &scope.push("ls2"),
            )?,
        })
    }

    /// x [B,N,C]
    fn forward(&self, x: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
        let h = apply(&normed(x, &self.norm1)?, &self.qkv)?; // [B,N,3C]
        let x = (x + apply(&ops::attention(&h, heads, None)?, &self.proj)?)?;
        let h = apply(&normed(&x, &self.norm2)?, &self.fc1)?.gelu_erf()?; // [B,N,4C]
        &x + apply(&h, &self.fc2)?
    }
}

pub struct DinoV2 {
    config: Config,
    /// [C,3,14,14], [C]
    patch_embed: Pair,
    /// [1,1,C]
    class_token: Tensor,
    /// [1,1+patches²,C]
    positions: Tensor,
    blocks: Vec<Block>,
    norm: Pair,
    device: Device,
    weights_hash: String,
    taps: Vec<Tap>,
}

impl DinoV2 {
    /// ViT-L/14 from the authors' file, or with the same names in safetensors.
    pub fn open(path: &Path, device: &Device) -> Result<Self> {
        let (tensors, hash) = read_hashed(path)?;
        let mut network = Self::new(Config::large(), &tensors, device).map_err(|e| {
            hinted(
                format!("{}: {e}", path.display()),
                "expected DINOv2's ViT-L/14, dinov2_vitl14_pretrain.pth",
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
        let scope = Scope::load(tensors, device);
        let (width, n) = (config.width, config.trained * config.trained);
        let proj = scope.push("patch_embed").push("proj");
        let block = |i| Block::new(width, &scope.push("blocks").push(i));
        let trained = get(&scope, "pos_embed", &[1, 1 + n, width])?;
        Ok(Self {
            patch_embed: (
                get(&proj, "weight", &[width, 3, PATCH, PATCH])?,
                get(&proj, "bias", &[width])?,
            ),
            class_token: get(&scope, "cls_token", &[1, 1, width])?,
            positions: positions::resize(&trained, config.patches)?,
            blocks: (0..config.depth)
                .map(block)
                .collect::<candle_core::Result<_>>()?,
            norm: norm(width, &scope.push("norm"))?,
            device: device.clone(),
            weights_hash: String::new(),
            taps: vec![Tap {
                name: "class-token",
                width,
            }],
            config,
        })
    }

    /// The resized position embeddings [1,1+patches²,C].
    pub fn positions(&self) -> &Tensor {
        &self.positions
    }

    /// Normalized images [B,S,S,3], S = 14·patches → class tokens [B,C].
    pub fn forward(&self, images: &Tensor) -> candle_core::Result<Tensor> {
        let (weight, bias) = &self.patch_embed;
        let patches = ops::conv2d(images, weight, Some(bias), PATCH, Padding::same(0))?;
        let (b, h, w, c) = patches.dims4()?;
        let patches = patches.reshape((b, h * w, c))?;
        let class = self.class_token.broadcast_as((b, 1, c))?.contiguous()?;
        let mut x = Tensor::cat(&[&class, &patches], 1)?.broadcast_add(&self.positions)?; // [B,N,C]
        for block in &self.blocks {
            x = block.forward(&x, self.config.heads)?;
        }
        normed(&x.narrow(1, 0, 1)?.contiguous()?, &self.norm)?.squeeze(1)
    }
}

impl FeatureNetwork for DinoV2 {
    fn name(&self) -> &'static str {
        NAME
    }

    fn weights_hash(&self) -> &str {
        &self.weights_hash
    }

    fn preprocess(&self) -> &'static str {
        "pil-bicubic-224"
    }

    fn taps(&self) -> &[Tap] {
        &self.taps
    }

    fn features(&self, images: &[RgbImage]) -> Result<Vec<Rows>> {
        let side = (PATCH * self.config.patches) as u32;
        let pixels = PIXELS.batch(images, side, &self.device, |image| {
            resize(image, side, side, Filter::Bicubic)
        })?;
        Ok(vec![Rows {
            width: self.config.width,
            values: self.forward(&pixels)?.flatten_all()?.to_vec1()?,
        }])
    }
}

fn get(scope: &Scope, name: &str, shape: &[usize]) -> candle_core::Result<Tensor> {
    // Given tensors are never drawn, so the initial value is irrelevant.
    scope.get(name, shape, Init::Zeros)?.to_dtype(DType::F32)
}

fn linear(input: usize, output: usize, scope: &Scope) -> candle_core::Result<Pair> {
    Ok((
        get(scope, "weight", &[output, input])?,
        get(scope, "bias", &[output])?,
    ))
}

fn norm(width: usize, scope: &Scope) -> candle_core::Result<Pair> {
    Ok((
        get(scope, "weight", &[width])?,
        get(scope, "bias", &[width])?,
    ))
}

/// A linear map with its following LayerScale γ folded in.
fn scaled((weight, bias): Pair, scope: &Scope) -> candle_core::Result<Pair> {
    let gamma = get(scope, "gamma", bias.dims())?;
    Ok((weight.broadcast_mul(&gamma.unsqueeze(1)?)?, (bias * gamma)?))
}

fn apply(x: &Tensor, (weight, bias): &Pair) -> candle_core::Result<Tensor> {
    ops::linear(x, weight, Some(bias))
}

fn normed(x: &Tensor, (weight, bias): &Pair) -> candle_core::Result<Tensor> {
    ops::layer_norm(x, weight, bias, EPS)
}
