//! Batches from the host to the card without waiting for it: page-locked buffers taken in turn, copied in the stream's order.

use candle_core::cuda_backend::cudarc::driver::{CudaEvent, PinnedHostSlice};
use candle_core::{CudaDevice, Error, Result, Shape, Tensor};

use super::tensor::of_slice;

/// The host fills one buffer while the other's copy waits for its turn on the card.
#[derive(Default)]
pub struct Upload {
    buffers: [Option<Buffer>; 2],
    turn: usize,
}

struct Buffer {
    memory: PinnedHostSlice<f32>,
    /// The end of the last copy out of it. cudarc's own event is not recorded on candle's stream, the thread's default one.
    copied: Option<CudaEvent>,
}

impl Buffer {
    /// Until the card no longer reads it.
    fn wait(&self) -> Result<()> {
        match &self.copied {
            Some(copied) => copied.synchronize().map_err(Error::wrap),
            None => Ok(()),
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Err(e) = self.wait() {
            tracing::warn!("the card's copies did not end well: {e}");
        }
    }
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
        if buffer.as_ref().is_none_or(|b| b.memory.len() != count) {
            // SAFETY: every bit pattern is an f32, and all elements are written before they are read.
            let memory = unsafe { stream.context().alloc_pinned::<f32>(count) };
            *buffer = Some(Buffer {
                memory: memory.map_err(Error::wrap)?,
                copied: None,
            });
        }
        let buffer = buffer.as_mut().expect("filled above");
        buffer.wait()?;
        fill(buffer.memory.as_mut_slice().map_err(Error::wrap)?);
        // SAFETY: the copy below writes every element.
        let mut slice = unsafe { device.alloc::<f32>(count)? };
        stream
            .memcpy_htod(&buffer.memory, &mut slice)
            .map_err(Error::wrap)?;
        buffer.copied = Some(stream.record_event(None).map_err(Error::wrap)?);
        Ok(of_slice(slice, shape, device))
    }
}
