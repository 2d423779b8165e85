//! Rectifiers: y = x where x > 0, slope·x elsewhere (slope 0: ReLU). Any shape.
//!
//! Gradient: dy where x > 0, slope·dy elsewhere; at 0 it is the slope, as in PyTorch (candle's
//! `relu` gives 1).

#[cfg(feature = "cuda")]
pub mod check;
mod cpu;
#[cfg(feature = "cuda")]
pub(super) mod cuda;
pub(super) mod fused;
mod reference;

#[cfg(test)]
mod tests;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::{slices, tape};
pub use fused::Activation;

/// max(x, 0).
pub fn relu(x: &Tensor) -> Result<Tensor> {
    leaky_relu(x, 0.0)
}

/// x where positive, `slope`·x elsewhere.
pub fn leaky_relu(x: &Tensor, slope: f64) -> Result<Tensor> {
    if !slices::have_kernels(&[x]) {
        return tape::plain([x], move |[x]| reference::leaky_relu(x, slope));
    }
    let slope = slope as f32;
    tape::apply1(x, LeakyRelu { slope })
}

/// x where positive, slope·x elsewhere.
struct LeakyRelu {
    slope: f32,
}

impl CustomOp1 for LeakyRelu {
    fn name(&self) -> &'static str {
        "leaky-relu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = cpu::forward(slices::of(x, layout)?, self.slope);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let f = cuda::Function::LeakyRelu { slope: self.slope };
        Ok((cuda::forward(f, x, layout)?, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return cuda::backward(cuda::Function::LeakyRelu { slope: self.slope }, x, dy);
        }
        let dx = slices::read([x, dy], |[x, dy]| cpu::backward(x, dy, self.slope))?;
        slices::gradient(x, dx)
    }
}
