//! L_quant = Σ_t γ_t·[mean(sg(v_t) − v'_t)² + δ·mean(v_t − sg(v'_t))²] / Σ_t γ_t (Eq. 4; without
//! the division by `sum`).
//!
//! v [B,h,w,d], v' [T,B,h,w,d] → a scalar. With n = B·h·w·d and w_t = γ_t / Σγ (or γ_t): ∂L/∂v =
//! Σ_t w_t·δ·2α_t·(v_t − v'_t)/n, since v_t = α_t·v + (what is detached); ∂L/∂v'_t = −2w_t·(v_t −
//! v'_t)/n.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::{Quantized, Schedule};
use crate::config::Reduction;
use crate::ops::{slices, tape};

/// Elements per partial sum; fixed, so that the sum does not depend on the number of threads.
const CHUNK: usize = 4096;

/// Eq. 4 as a scalar. `lookup` is v'_t [T,B,h,w,d], differentiable, of `quantized.codes`.
///
/// Gradients go to `v` (the commitment term, weight `delta` = δ) and to `lookup` (the codebook
/// term). Errors: shapes that do not match.
pub fn quantization_loss(
    v: &Tensor,
    lookup: &Tensor,
    quantized: &Quantized,
    schedule: &Schedule,
    gamma: &[f32],
    delta: f32,
    reduction: Reduction,
) -> Result<Tensor> {
    let noisy = &quantized.noisy;
    let steps = schedule.steps();
    if gamma.len() != steps
        || lookup.dims() != noisy.dims()
        || noisy.dims() != [&[steps], v.dims()].concat()
    {
        bail!(
            "quantization_loss: v {:?}, v' {:?}, v_t {:?}, {} weights for {steps} steps",
            v.dims(),
            lookup.dims(),
            noisy.dims(),
            gamma.len()
        );
    }
    let total: f32 = match reduction {
        Reduction::Mean => gamma.iter().sum(),
        Reduction::Sum => 1.0,
    };
    let op = QuantizationLoss {
        noisy: noisy.detach(),
        alpha: schedule.alpha.clone(),
        weight: gamma.iter().map(|g| g / total).collect(),
        delta,
    };
    if op.has_kernels(v, lookup) {
        tape::apply2(v, lookup, op)
    } else {
        tape::plain([v, lookup], move |[v, lookup]| op.by_tensors(v, lookup))
    }
}

pub(super) struct QuantizationLoss {
    pub noisy: Tensor,
    pub alpha: Vec<f32>,
    /// w_t
    pub weight: Vec<f32>,
    pub delta: f32,
}

impl QuantizationLoss {
    fn has_kernels(&self, v: &Tensor, lookup: &Tensor) -> bool {
        #[cfg(feature = "cuda")]
        if super::loss_cuda::serves(self.weight.len()) {
            return slices::meet_kernels(&[v], &[v, lookup, &self.noisy]);
        }
        slices::are_f32_on_cpu(&[v, lookup, &self.noisy])
    }

    /// The same in candle operations, where there is no kernel.
    fn by_tensors(&self, v: &Tensor, lookup: &Tensor) -> Result<Tensor> {
        let n = v.elem_count() as f64;
        let mut total = Tensor::zeros((), v.dtype(), v.device())?;
        for (t, (&weight, &alpha)) in self.weight.iter().zip(&self.alpha).enumerate() {
            let (noisy, looked_up) = (self.noisy.get(t)?, lookup.get(t)?);
            let book = (&noisy - &looked_up)?.sqr()?.sum_all()?;
            // v_t as a function of v: the value of `noisy`, with slope α_t.
            let v_t = (noisy + ((v - v.detach())? * f64::from(alpha))?)?;
            let commit = (v_t - looked_up.detach())?.sqr()?.sum_all()?;
            let term = (book + (commit * f64::from(self.delta))?)?;
            total = (total + (term * (f64::from(weight) / n))?)?;
        }
        Ok(total)
    }
}

impl CustomOp2 for QuantizationLoss {
    fn name(&self) -> &'static str {
        "quantization-loss"
    }

    fn cpu_fwd(
        &self,
        v: &CpuStorage,
        v_layout: &Layout,
        lookup: &CpuStorage,
        lookup_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let n = slices::of(v, v_layout)?.len();
        let lookup = slices::of(lookup, lookup_layout)?;
        let loss = slices::read([&self.noisy], |[noisy]| {
            let mut loss = 0f64;
            for (t, &weight) in self.weight.iter().enumerate() {
                let step = t * n..(t + 1) * n;
                let partial: Vec<f64> = noisy[step.clone()]
                    .par_chunks(CHUNK)
                    .zip(lookup[step].par_chunks(CHUNK))
                    .map(|(a, b)| a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum())
                    .collect();
                loss += f64::from(weight) * partial.iter().sum::<f64>() / n as f64;
            }
            (1.0 + f64::from(self.delta)) * loss
        })?;
        Ok((CpuStorage::F32(vec![loss as f32]), Shape::from(())))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        v: &candle_core::CudaStorage,
        v_layout: &Layout,
        lookup: &candle_core::CudaStorage,
        lookup_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let n = v_layout.shape().elem_count();
        let loss = super::loss_cuda::forward(self, v, n, (lookup, lookup_layout))?;
        Ok((loss, Shape::from(())))
    }

    fn bwd(
        &self,
        v: &Tensor,
        lookup: &Tensor,
        _loss: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        #[cfg(feature = "cuda")]
        if v.device().is_cuda() {
            return super::loss_cuda::backward(self, v, lookup, grad);
        }
        let n = v.elem_count() as f64;
        let (mut to_v, mut to_lookup) = (None, Vec::new());
        for (t, (&weight, &alpha)) in self.weight.iter().zip(&self.alpha).enumerate() {
            let difference = (self.noisy.get(t)? - lookup.get(t)?)?;
            let slope = 2.0 * f64::from(weight) / n;
            if v.track_op() {
                let part = (&difference * (slope * f64::from(self.delta * alpha)))?;
                to_v = Some(match to_v {
                    None => part,
                    Some(sum) => (sum + part)?,
                });
            }
            if lookup.track_op() {
                to_lookup.push((difference * -slope)?);
            }
        }
        let times = |x: Tensor| x.broadcast_mul(grad);
        let to_lookup = match to_lookup.as_slice() {
            [] => None,
            parts => Some(times(Tensor::stack(parts, 0)?)?),
        };
        Ok((to_v.map(times).transpose()?, to_lookup))
    }
}
