//! LPIPS's distance of two feature maps (Zhang et al. 2018, Eq. 1): normalized per position,
//! weighted squared differences.
//!
//! y = mean over positions of Σ_c w_c·(â_c − b̂_c)², â = a/(‖a‖ + 1e-10) over C. a, b [..,C],
//! weight [C] → a scalar. Gradients to a and b; if a norm is 0, PyTorch's gradient is NaN and this
//! one is 0 [ours].

#[cfg(feature = "cuda")]
pub mod check;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod reference;
#[cfg(test)]
mod tests;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};

use super::{check as shapes, slices, tape};

/// Added to every norm, as in the LPIPS package.
const EPS: f64 = 1e-10;

/// a, b [..,C]; weight [C].
pub fn feature_distance(a: &Tensor, b: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let c = shapes::last_dim("feature_distance", "a", a)?;
    shapes::shape("feature_distance", "b", b, a.dims())?;
    shapes::shape("feature_distance", "weight", weight, &[c])?;
    // The fast version has no gradient for the weight, which LPIPS keeps frozen.
    if slices::meet_kernels(&[a, b], &[weight]) && a.dtype() == b.dtype() && !weight.track_op() {
        return tape::apply3(a, b, weight, FeatureDistance);
    }
    tape::plain([a, b, weight], |[a, b, weight]| {
        reference::feature_distance(a, b, weight)
    })
}

struct FeatureDistance;

impl CustomOp3 for FeatureDistance {
    fn name(&self) -> &'static str {
        "feature_distance"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (a, b) = (slices::of(a, a_layout)?, slices::of(b, b_layout)?);
        let mean = cpu::forward(a, b, slices::of(weight, weight_layout)?);
        Ok((CpuStorage::F32(vec![mean]), Shape::from(())))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        a: &candle_core::CudaStorage,
        a_layout: &Layout,
        b: &candle_core::CudaStorage,
        b_layout: &Layout,
        weight: &candle_core::CudaStorage,
        weight_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let mean = cuda::forward((a, a_layout), (b, b_layout), (weight, weight_layout))?;
        Ok((mean, Shape::from(())))
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        #[cfg(feature = "cuda")]
        if a.device().is_cuda() {
            let (da, db) = cuda::backward(a, b, weight, dy)?;
            return Ok((da, db, None));
        }
        let scale = 2.0 * dy.to_scalar::<f32>()? / (a.elem_count() / weight.elem_count()) as f32;
        let gradient = |x: &Tensor, y: &Tensor| match x.track_op() {
            true => slices::gradient(x, slices::read([x, y, weight], |s| cpu::toward(s, scale))?),
            false => Ok(None),
        };
        Ok((gradient(a, b)?, gradient(b, a)?, None))
    }
}
