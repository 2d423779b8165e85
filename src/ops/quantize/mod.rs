//! Recurrent quantization (Algorithm 1): T noisy residual steps against one codebook.
//!
//! r_1 = v; for t = 1..T: v_t = α_t·r_t + β_t·ε_t; c_t = argmin_k ‖v_t − e_k‖² (lowest index on a
//! tie); v'_t = e_{c_t} + conv3×3(e_{c_t}); r_{t+1} = r_t − v'_t; z'_t = z'_{t−1} + v'_t.
//!
//! v, ε_t, v_t, v'_t and z'_t are [B,h,w,d] f32, codes [B,h,w] u32; stacks over steps have T in
//! front. The recurrence itself has no gradient; [`Codebook::lookup`] and [`quantization_loss`]
//! have.

#[cfg(feature = "cuda")]
pub mod check;
#[cfg(feature = "cuda")]
pub mod check_loss;
#[cfg(feature = "cuda")]
pub mod check_tensors;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod loss;
#[cfg(feature = "cuda")]
mod loss_cuda;
mod nearest;
#[cfg(feature = "cuda")]
mod on_gpu;
mod perturb;
mod reference;
mod schedule;
#[cfg(test)]
mod tests;

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::rng::{Purpose, normal};

pub use loss::quantization_loss;
pub use perturb::Perturbation;
pub use schedule::Schedule;

/// The source of ε_t.
#[derive(Debug, Clone, Copy)]
pub enum Noise<'a> {
    /// [T,B,h,w,d]
    Given(&'a Tensor),
    /// For image b, from the stream (seed, [`Purpose::Noise`], indices[b], t).
    Drawn { seed: u64, indices: &'a [u64] },
}

impl Noise<'_> {
    /// ε_t [B,h,w,d], t = 1..T.
    pub fn step(&self, t: usize, shape: [usize; 4], device: &Device) -> Result<Tensor> {
        let [b, h, w, d] = shape;
        match *self {
            Noise::Given(noise) => noise.get(t - 1)?.contiguous(),
            Noise::Drawn { seed, indices } => {
                debug_assert_eq!(indices.len(), b);
                normal(seed, Purpose::Noise, indices, t as u32, &[h, w, d], device)
            }
        }
    }

    fn check(&self, steps: usize, [b, h, w, d]: [usize; 4]) -> Result<()> {
        match self {
            Noise::Given(noise) => {
                let expected = [steps, b, h, w, d];
                if noise.dims() != expected {
                    bail!(
                        "quantize: noise must be [T,B,h,w,d] = {expected:?}, found {:?}",
                        noise.dims()
                    );
                }
            }
            Noise::Drawn { indices, .. } => {
                if indices.len() != b {
                    bail!("quantize: {} noise indices for {b} images", indices.len());
                }
            }
        }
        Ok(())
    }
}

/// The codes' vectors, and the shared convolution over a looked-up map.
#[derive(Debug, Clone)]
pub struct Codebook {
    /// e [K,d]
    pub embedding: Tensor,
    /// Weight [d,d,3,3] and bias [d]; if absent, v' = e.
    pub bias: Option<(Tensor, Tensor)>,
}

impl Codebook {
    /// v' = e_c + conv3×3(e_c): codes u32 [..,h,w] → [..,h,w,d], differentiable in embedding,
    /// weight and bias.
    pub fn lookup(&self, codes: &Tensor) -> Result<Tensor> {
        reference::lookup(self, codes)
    }

    fn dims(&self) -> Result<(usize, usize)> {
        let (k, d) = self.embedding.dims2()?;
        if let Some((weight, bias)) = &self.bias
            && (weight.dims() != [d, d, 3, 3] || bias.dims() != [d])
        {
            bail!(
                "quantize: the shared convolution must be [{d},{d},3,3] and [{d}], found {:?} and {:?}",
                weight.dims(),
                bias.dims()
            );
        }
        Ok((k, d))
    }

    fn detach(&self) -> Self {
        Self {
            embedding: self.embedding.detach(),
            bias: self
                .bias
                .as_ref()
                .map(|(weight, bias)| (weight.detach(), bias.detach())),
        }
    }
}

/// All T steps of a batch, without gradients.
#[derive(Debug, Clone)]
pub struct Quantized {
    /// c_t, u32 [T,B,h,w]
    pub codes: Tensor,
    /// z'_0 = 0 .. z'_T, [T+1,B,h,w,d]
    pub sums: Tensor,
    /// v_t, [T,B,h,w,d]
    pub noisy: Tensor,
}

/// One training example of the generator per image, at the image's own t.
#[derive(Debug, Clone)]
pub struct Examples {
    /// ε_t [B,h,w,d]
    pub noise: Tensor,
    /// z'_{t−1} [B,h,w,d]
    pub sum: Tensor,
    /// c_t, u32 [B,h,w]
    pub codes: Tensor,
}

/// Algorithm 1 for v [B,h,w,d].
///
/// Errors: shapes that do not match; dtypes other than f32.
pub fn recurrent_quantize(
    v: &Tensor,
    codebook: &Codebook,
    noise: &Noise,
    schedule: &Schedule,
) -> Result<Quantized> {
    check(v, codebook, noise, schedule)?;
    let (v, codebook) = (v.detach(), codebook.detach());
    match v.device() {
        Device::Cpu => cpu::recurrent_quantize(&v, &codebook, noise, schedule),
        #[cfg(feature = "cuda")]
        Device::Cuda(device) if on_gpu::serves(&v) => {
            on_gpu::recurrent_quantize(device, &v, &codebook, noise, schedule)
        }
        _ => reference::recurrent_quantize(
            &v,
            &codebook,
            noise,
            schedule,
            reference::nearest_by_products,
        ),
    }
}

/// Algorithm 1 for v [B,h,w,d], stopped at the step t[b] in 1..T for image b.
///
/// Errors: as for [`recurrent_quantize`]; a t outside 1..T.
pub fn quantize_until(
    v: &Tensor,
    codebook: &Codebook,
    noise: &Noise,
    schedule: &Schedule,
    t: &[u32],
) -> Result<Examples> {
    quantize_until_perturbed(v, codebook, noise, schedule, t, None)
}

/// [`quantize_until`], with some of the codes before each image's own step perturbed.
///
/// Errors: as for that; given noise, whose images have no numbers to draw by.
pub fn quantize_until_perturbed(
    v: &Tensor,
    codebook: &Codebook,
    noise: &Noise,
    schedule: &Schedule,
    t: &[u32],
    perturbation: Option<&Perturbation>,
) -> Result<Examples> {
    let [b, ..] = check(v, codebook, noise, schedule)?;
    let steps = schedule.steps();
    if t.len() != b || t.iter().any(|&t| t == 0 || t as usize > steps) {
        bail!("quantize: t must be one of 1..{steps} for each of {b} images, found {t:?}");
    }
    if perturbation.is_some() && matches!(noise, Noise::Given(_)) {
        bail!("quantize: perturbed codes need noise that is drawn by the images' numbers");
    }
    let (v, codebook) = (v.detach(), codebook.detach());
    match v.device() {
        Device::Cpu => cpu::quantize_until(&v, &codebook, noise, schedule, t, perturbation),
        #[cfg(feature = "cuda")]
        Device::Cuda(device) if on_gpu::serves(&v) => {
            on_gpu::quantize_until(device, &v, &codebook, noise, schedule, t, perturbation)
        }
        _ => reference::quantize_until(
            &v,
            &codebook,
            noise,
            schedule,
            t,
            perturbation,
            reference::nearest_by_products,
        ),
    }
}

fn check(
    v: &Tensor,
    codebook: &Codebook,
    noise: &Noise,
    schedule: &Schedule,
) -> Result<[usize; 4]> {
    let (b, h, w, d) = v.dims4()?;
    let (_, width) = codebook.dims()?;
    if width != d {
        bail!("quantize: v has {d} channels, the codebook's vectors {width}");
    }
    if v.dtype() != DType::F32 || codebook.embedding.dtype() != DType::F32 {
        bail!(
            "quantize: v and codebook must be f32, found {:?} and {:?}",
            v.dtype(),
            codebook.embedding.dtype()
        );
    }
    noise.check(schedule.steps(), [b, h, w, d])?;
    Ok([b, h, w, d])
}
