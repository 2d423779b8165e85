//! The tokenizer: VQGAN's encoder and decoder around the recurrent quantizer (the paper's section
//! 3).
//!
//! Images [B,H,W,3] in [-1,1] ↔ latents [B,h,w,d]; the latent v is layer-normalized over d at every
//! position.

use candle_core::{DType, Device, Result, Tensor};

use super::decoder::Decoder;
use super::encoder::Encoder;
use super::layers::Conv2d;
use super::quantizer::Quantizer;
use crate::config::Config;
use crate::ops::{self, arrange};
use crate::store::{Init, Scope};

pub struct Tokenizer {
    encoder: Encoder,
    decoder: Decoder,
    quant_conv: Conv2d,
    post_quant_conv: Conv2d,
    /// Weight and bias of the LayerNorm over d.
    latent_norm: (Tensor, Tensor),
    pub quantizer: Quantizer,
    patch: usize,
    /// The dtype of the activations in encoder and decoder.
    compute: DType,
}

impl Tokenizer {
    pub fn new(config: &Config, scope: &Scope) -> Result<Self> {
        let (tokenizer, d) = (&config.tokenizer, config.tokenizer.embed_dim);
        let latent_norm = scope.push("latent_norm");
        Ok(Self {
            encoder: Encoder::new(tokenizer, &scope.push("encoder"))?,
            decoder: Decoder::new(tokenizer, &scope.push("decoder"))?,
            quant_conv: Conv2d::same(d, d, 1, &scope.push("quant_conv"))?,
            post_quant_conv: Conv2d::same(d, d, 1, &scope.push("post_quant_conv"))?,
            latent_norm: (
                latent_norm.get("weight", d, Init::Ones)?,
                latent_norm.get("bias", d, Init::Zeros)?,
            ),
            quantizer: Quantizer::new(
                &config.quantizer,
                &config.schedule,
                d,
                &scope.push("quantize"),
            )?,
            patch: tokenizer.patch,
            compute: DType::F32,
        })
    }

    /// The same with activations of `compute`, f32 or on a GPU bf16; weights, latents and images
    /// stay f32.
    pub fn computing(self, compute: DType) -> Self {
        Self { compute, ..self }
    }

    /// The same, keeping less for the gradient: the residual blocks of the `levels` largest
    /// resolutions are computed again in the backward pass. Results are the same; on a Hopper GPU
    /// but for rounding, since a block's first norm then reads its map instead of taking the
    /// moments that the convolution before it left.
    pub fn recomputing(self, levels: usize) -> Self {
        Self {
            encoder: self.encoder.recomputing(levels),
            decoder: self.decoder.recomputing(levels),
            ..self
        }
    }

    /// The same for inference: activations in bf16 on a GPU, in f32 on a CPU.
    pub fn for_inference(self, device: &Device) -> Self {
        let compute = if device.is_cuda() {
            DType::BF16
        } else {
            DType::F32
        };
        self.computing(compute)
    }

    /// Images [B,H,W,3] → v [B,h,w,d] in f32.
    pub fn encode(&self, images: &Tensor) -> Result<Tensor> {
        let pixels = arrange::cast(&space_to_depth(images, self.patch)?, self.compute)?;
        let h = self.quant_conv.forward(&self.encoder.forward(&pixels)?)?;
        let h = arrange::cast(&h, DType::F32)?;
        ops::layer_norm(&h, &self.latent_norm.0, &self.latent_norm.1, 1e-5)
    }

    /// z [B,h,w,d] → images [B,H,W,3].
    pub fn decode(&self, z: &Tensor) -> Result<Tensor> {
        self.output(&self.features(z)?)
    }

    /// The decoder's last features [B,H/patch,W/patch,ch].
    pub fn features(&self, z: &Tensor) -> Result<Tensor> {
        let z = arrange::cast(z, self.compute)?;
        self.decoder.features(&self.post_quant_conv.forward(&z)?)
    }

    /// The decoder's last layer: features → images [B,H,W,3] in f32.
    pub fn output(&self, features: &Tensor) -> Result<Tensor> {
        self.pixels(&self.decoder.conv_out.forward(features)?)
    }

    /// The same without a gradient for the layer's weight, which [`Tokenizer::last_layer_grad`]
    /// gives.
    pub fn output_by_fixed_weight(&self, features: &Tensor) -> Result<Tensor> {
        self.pixels(&self.decoder.conv_out.forward_by_fixed_weight(features)?)
    }

    fn pixels(&self, deep: &Tensor) -> Result<Tensor> {
        depth_to_space(&arrange::cast(deep, DType::F32)?, self.patch)
    }

    /// The weight of the decoder's last layer.
    pub fn last_layer_weight(&self) -> &Tensor {
        &self.decoder.conv_out.weight
    }

    /// z [B,h,w,d] → the decoder's last map [B,H/patch,W/patch,3·patch²], as it is computed:
    /// [`depth_to_space`] of it is the image.
    pub fn pixel_map(&self, z: &Tensor) -> Result<Tensor> {
        self.decoder.conv_out.forward(&self.features(z)?)
    }

    pub fn patch(&self) -> usize {
        self.patch
    }

    /// ∂L/∂W for the decoder's last weight W, from the gradient of L with respect to the images;
    /// the adaptive weight compares its norm.
    pub fn last_layer_grad(&self, features: &Tensor, image_grad: &Tensor) -> Result<Tensor> {
        let grad = arrange::cast(&space_to_depth(image_grad, self.patch)?, features.dtype())?;
        self.decoder.conv_out.weight_grad(features, &grad)
    }
}

/// Whether the parameter `name` of a tokenizer belongs to what turns latents into images: two
/// tokenizers that differ in these alone have the same codes.
pub fn of_decoder(name: &str) -> bool {
    name.starts_with("decoder.") || name.starts_with("post_quant_conv.")
}

/// v + (z'_T − v).detach(): the decoder gets z'_T, and the gradient passes to v unchanged.
pub fn straight_through(v: &Tensor, sum: &Tensor) -> Result<Tensor> {
    ops::add(v, &(sum - v)?.detach())
}

/// [B,H,W,C] → [B,H/p,W/p,C·p²], channels in `pixel_unshuffle`'s order (c, row, column).
pub fn space_to_depth(x: &Tensor, p: usize) -> Result<Tensor> {
    if p == 1 {
        return Ok(x.clone());
    }
    let (b, h, w, c) = x.dims4()?;
    if h % p != 0 || w % p != 0 {
        candle_core::bail!("images of {h}×{w} pixels cannot be divided into patches of {p}");
    }
    let deep = x
        .reshape(&[b, h / p, p, w / p, p, c])?
        .permute([0, 1, 3, 5, 2, 4])?
        .reshape((b, h / p, w / p, c * p * p))?;
    arrange::rearranged(x, deep, move |grad, _| depth_to_space(grad, p))
}

/// The inverse of [`space_to_depth`]: [B,h,w,C·p²] → [B,h·p,w·p,C].
pub fn depth_to_space(x: &Tensor, p: usize) -> Result<Tensor> {
    if p == 1 {
        return Ok(x.clone());
    }
    let (b, h, w, c) = x.dims4()?;
    let c = c / (p * p);
    let wide = x
        .reshape(&[b, h, w, c, p, p])?
        .permute([0, 1, 4, 2, 5, 3])?
        .reshape((b, h * p, w * p, c))?;
    arrange::rearranged(x, wide, move |grad, _| space_to_depth(grad, p))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_to_space_undoes_space_to_depth() -> Result<()> {
        let x = Tensor::arange(0f32, 2. * 6. * 9. * 5., &Device::Cpu)?.reshape((2, 6, 9, 5))?;
        let deep = space_to_depth(&x, 3)?;
        assert_eq!(deep.dims(), [2, 2, 3, 45]);
        let back = depth_to_space(&deep, 3)?;
        assert_eq!(
            back.flatten_all()?.to_vec1::<f32>()?,
            x.flatten_all()?.to_vec1::<f32>()?
        );
        Ok(())
    }
}
