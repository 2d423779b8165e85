//! Pooling over windows k×k: the maximum, or the mean of the values inside the map (padding is not
//! counted). [B,H,W,C] → [B,H',W',C], H' = ⌊(H + top + bottom − k)/s⌋ + 1; windows may overlap.
//!
//! Gradient of the maximum: dy goes to the first of the largest values in row order (as in
//! PyTorch). Gradient of the mean: dy / count goes to every value of the window.

#[cfg(feature = "cuda")]
pub mod check;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
mod mean;
mod reference;

#[cfg(test)]
mod tests;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};

#[cfg(feature = "cuda")]
pub use cuda::relu_of_average;
#[cfg(feature = "cuda")]
pub use mean::mean_over_positions;

use super::window::{Padding, Window};
use super::{slices, tape};

/// The maximum of every `kernel`×`kernel` window of `x` [B,H,W,C].
pub fn max_pool2d(x: &Tensor, kernel: usize, stride: usize, padding: Padding) -> Result<Tensor> {
    let window = window("max_pool2d", x, kernel, stride, padding)?;
    if !serves(x) {
        return tape::plain([x], move |[x]| reference::max_pool2d(x, &window));
    }
    let kind = Kind::Max;
    tape::apply1(x, Pool { window, kind })
}

/// The mean of every `kernel`×`kernel` window of `x` [B,H,W,C], over the positions inside the map.
pub fn avg_pool2d(x: &Tensor, kernel: usize, stride: usize, padding: Padding) -> Result<Tensor> {
    let window = window("avg_pool2d", x, kernel, stride, padding)?;
    if !serves(x) {
        return tape::plain([x], move |[x]| reference::avg_pool2d(x, &window));
    }
    let kind = Kind::Average;
    tape::apply1(x, Pool { window, kind })
}

/// Whether there are kernels: also of f16 on a GPU, without a gradient.
fn serves(x: &Tensor) -> bool {
    let forward_only =
        cfg!(feature = "cuda") && x.device().is_cuda() && x.dtype() == DType::F16 && !x.track_op();
    slices::have_kernels(&[x]) || forward_only
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Max,
    Average,
}

/// [B,H,W,C] → [B,H',W',C].
struct Pool {
    window: Window,
    kind: Kind,
}

impl Pool {
    fn output(&self, layout: &Layout) -> Result<Shape> {
        let (b, _, _, c) = layout.shape().dims4()?;
        let (lines, columns) = self.window.output;
        Ok((b, lines, columns, c).into())
    }
}

impl CustomOp1 for Pool {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Max => "max-pool2d",
            Kind::Average => "avg-pool2d",
        }
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = self.forward(slices::of(x, layout)?, layout.shape().dims4()?);
        Ok((CpuStorage::F32(y), self.output(layout)?))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        Ok((cuda::forward(self, x, layout)?, self.output(layout)?))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return cuda::backward(self, x, dy);
        }
        let shape = x.dims4()?;
        let dx = slices::read([x, dy], |[x, dy]| self.backward(x, dy, shape))?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

fn window(op: &str, x: &Tensor, kernel: usize, stride: usize, padding: Padding) -> Result<Window> {
    let [_, h, w, _] = *x.dims() else {
        bail!("{op}: the map must be [B,H,W,C], found {:?}", x.dims());
    };
    // A window completely inside the padding has neither a maximum nor a mean.
    let widest = [padding.top, padding.bottom, padding.left, padding.right];
    if widest.iter().any(|&p| p >= kernel) {
        bail!("{op}: padding {padding:?} must be smaller than the kernel {kernel}");
    }
    Window::new(op, (h, w), (kernel, kernel), stride, padding)
}
