//! SiLU: y = x·σ(x). Any shape. Gradient: dy·σ(x)·(1 + x·(1 − σ(x))). The GPU's kernels are
//! `activation`'s.

mod cpu;
#[cfg(test)]
mod tests;

#[cfg(feature = "cuda")]
use super::activation::cuda;
use super::{slices, tape};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

/// x·σ(x).
pub fn silu(x: &Tensor) -> Result<Tensor> {
    if slices::have_kernels(&[x]) {
        return tape::apply1(x, Silu);
    }
    tape::plain([x], |[x]| x.silu())
}

struct Silu;

impl CustomOp1 for Silu {
    fn name(&self) -> &'static str {
        "silu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = cpu::forward(slices::of(x, layout)?);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let y = cuda::forward(cuda::Function::Silu, x, layout)?;
        Ok((y, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return cuda::backward(cuda::Function::Silu, x, dy);
        }
        let dx = slices::read([x, dy], |[x, dy]| cpu::backward(x, dy))?;
        slices::gradient(x, dx)
    }
}
