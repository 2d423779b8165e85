//! Batches from the host to the card without waiting for it: page-locked buffers taken in turn, copied in the stream's order.

use candle_core::cuda_backend::cudarc::driver::PinnedHostSlice;
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, Result, Shape, Storage, Tensor};

/// The host fills one buffer while the other's copy waits for its turn on the card.
#[derive(Default)]
pub struct Upload {
    buffers: [Option<PinnedHostSlice<f32>>; 2],
    turn: usize,
}

impl Upload {
    /// A tensor of what `fill` writes, every element of it. Waits only for the copy before the last.
    pub fn tensor(
        &mut self,
        device: &CudaDevice,
        shape: impl Into<Shape>,
        fill: impl FnOnce(&mut [f32]),
    ) -> Result<Tensor> {
        let (shape, stream) = (shape.into(), device.cuda_stream());
        let count = shape.elem_count();
        self.turn = (self.turn + 1) % self.buffers.len();
        let buffer = &mut self.buffers[self.turn];
        if buffer.as_ref().is_none_or(|buffer| buffer.len() != count) {
            // SAFETY: every bit pattern is an f32, and all elements are written before they are read.
            let fresh = unsafe { stream.context().alloc_pinned::<f32>(count) };
            *buffer = Some(fresh.map_err(candle_core::Error::wrap)?);
        }
        let buffer = buffer.as_mut().expect("filled above");
        fill(buffer.as_mut_slice().map_err(candle_core::Error::wrap)?);
        // SAFETY: the copy below writes every element.
        let mut slice = unsafe { device.alloc::<f32>(count)? };
        stream
            .memcpy_htod(&*buffer, &mut slice)
            .map_err(candle_core::Error::wrap)?;
        let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(slice, device.clone()));
        Ok(Tensor::from_storage(
            storage,
            shape,
            BackpropOp::none(),
            false,
        ))
    }
}
