//! Nearest-neighbour upsampling: y[b,i,j,c] = x[b,⌊i/2⌋,⌊j/2⌋,c]. [B,H,W,C] → [B,2H,2W,C].
//!
//! Gradient: the sum of dy over each square of four.

#[cfg(feature = "cuda")]
pub mod check;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod reference;

#[cfg(test)]
mod tests;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::{slices, tape};

/// Doubles height and width of `x` [B,H,W,C] by repetition.
pub fn upsample_nearest2x(x: &Tensor) -> Result<Tensor> {
    if x.rank() != 4 {
        bail!(
            "upsample_nearest2x: the map must be [B,H,W,C], found {:?}",
            x.dims()
        );
    }
    if !slices::have_kernels(&[x]) {
        return tape::plain([x], |[x]| reference::upsample_nearest2x(x));
    }
    tape::apply1(x, Upsample)
}

/// [B,H,W,C] → [B,2H,2W,C].
struct Upsample;

impl CustomOp1 for Upsample {
    fn name(&self) -> &'static str {
        "upsample-nearest2x"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (b, h, w, c) = layout.shape().dims4()?;
        let y = cpu::forward(slices::of(x, layout)?, w, c);
        Ok((CpuStorage::F32(y), (b, 2 * h, 2 * w, c).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let (b, h, w, c) = layout.shape().dims4()?;
        Ok((cuda::forward(x, layout)?, (b, 2 * h, 2 * w, c).into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return cuda::backward(x, dy);
        }
        let (_, _, w, c) = x.dims4()?;
        let dx = slices::read([dy], |[dy]| cpu::backward(dy, w, c))?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}
