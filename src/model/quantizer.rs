//! Recurrent quantization with its parameters (Algorithm 1) and its loss L_quant (Eq. 4).
//!
//! v [B,h,w,d] → codes [T,B,h,w] and sums z'_0..z'_T [T+1,B,h,w,d].

use candle_core::{Result, Tensor};

use crate::config::{QuantizerConfig, Reduction, ScheduleConfig};
use crate::ops::quantize::{self, Codebook, Examples, Noise, Perturbation, Quantized, Schedule};
use crate::store::{Init, Scope};

pub struct Quantizer {
    pub codebook: Codebook,
    pub schedule: Schedule,
    /// γ_t: α_t if `weight` is on, else 1.
    gamma: Vec<f32>,
    commitment: f32,
    reduction: Reduction,
}

impl Quantizer {
    /// The shared convolution starts at zero, so that initially v' = e.
    pub fn new(
        config: &QuantizerConfig,
        schedule: &ScheduleConfig,
        dim: usize,
        scope: &Scope,
    ) -> Result<Self> {
        let normal = Init::Normal {
            mean: 0.0,
            std: config.init_std,
        };
        let embedding =
            scope
                .push("embedding")
                .get("weight", (config.codebook_size, dim), normal)?;
        let conv = scope.push("bias_conv");
        let bias = match config.bias {
            true => Some((
                conv.get("weight", (dim, dim, 3, 3), Init::Zeros)?,
                conv.get("bias", dim, Init::Zeros)?,
            )),
            false => None,
        };
        let schedule = Schedule::new(schedule, config.steps);
        let gamma = match config.weight {
            true => schedule.alpha.clone(),
            false => vec![1.0; config.steps],
        };
        Ok(Self {
            codebook: Codebook { embedding, bias },
            schedule,
            gamma,
            commitment: config.commitment as f32,
            reduction: config.reduction,
        })
    }

    /// T
    pub fn steps(&self) -> usize {
        self.schedule.steps()
    }

    /// All T steps, without gradients.
    pub fn quantize(&self, v: &Tensor, noise: &Noise) -> Result<Quantized> {
        quantize::recurrent_quantize(v, &self.codebook, noise, &self.schedule)
    }

    /// The generator's training examples: image b is quantized up to its own t[b].
    pub fn quantize_until(&self, v: &Tensor, noise: &Noise, t: &[u32]) -> Result<Examples> {
        quantize::quantize_until(v, &self.codebook, noise, &self.schedule, t)
    }

    /// [`Quantizer::quantize_until`], with some of the codes before t[b] perturbed.
    pub fn quantize_until_perturbed(
        &self,
        v: &Tensor,
        noise: &Noise,
        t: &[u32],
        perturbation: Option<&Perturbation>,
    ) -> Result<Examples> {
        let (codebook, schedule) = (&self.codebook, &self.schedule);
        quantize::quantize_until_perturbed(v, codebook, noise, schedule, t, perturbation)
    }

    /// v'(codes) [..,h,w] → [..,h,w,d], differentiable in the codebook.
    pub fn lookup(&self, codes: &Tensor) -> Result<Tensor> {
        self.codebook.lookup(codes)
    }

    /// Σ_t γ_t [ mean(sg(v_t) − v'_t)² + δ·mean(v_t − sg(v'_t))² ], divided by Σ_t γ_t if the
    /// reduction is the mean.
    pub fn loss(&self, v: &Tensor, quantized: &Quantized) -> Result<Tensor> {
        quantize::quantization_loss(
            v,
            &self.lookup(&quantized.codes)?,
            quantized,
            &self.schedule,
            &self.gamma,
            self.commitment,
            self.reduction,
        )
    }
}
