//! `[loss]`: the terms of the tokenizer's loss besides the squared error.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Perceptual {
    /// LPIPS on VGG16.
    Lpips,
    None,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossConfig {
    /// Weight of L_quant [ours]; the paper's is 1.
    pub quant_weight: f64,
    pub perceptual: Perceptual,
    pub perceptual_weight: f64,
    /// Path of torchvision's VGG16 (.pth or .safetensors); --vgg on the command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vgg: Option<String>,
    /// Path of the LPIPS heads; --lpips on the command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lpips: Option<String>,
    /// η of the adversarial term; 0 trains without a discriminator.
    pub disc_weight: f64,
    /// First step at which the discriminator runs.
    pub disc_start: u64,
    /// Steps over which the adversarial weight rises from 0 [ours].
    pub disc_ramp: u64,
    pub disc_lr: f64,
    /// Strided layers of the PatchGAN discriminator.
    pub disc_layers: usize,
    /// The most that the adaptive weight λ can be; VQGAN's is 1e4.
    pub adaptive_weight_max: f64,
    /// Train the decoder alone, on latents that stay as they are [ours].
    pub decoder_only: bool,
}

impl Default for LossConfig {
    fn default() -> Self {
        Self {
            quant_weight: 1.0,
            perceptual: Perceptual::Lpips,
            perceptual_weight: 1.0,
            vgg: None,
            lpips: None,
            disc_weight: 0.75,
            disc_start: 20_000,
            disc_ramp: 2_000,
            disc_lr: 4e-5,
            disc_layers: 3,
            adaptive_weight_max: 1e4,
            decoder_only: false,
        }
    }
}
