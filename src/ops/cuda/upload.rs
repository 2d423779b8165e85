//! Batches from the host to the GPU without waiting for it: page-locked buffers used in turn,
//! copied in the stream's order.

use candle_core::cuda_backend::cudarc::driver::{CudaEvent, PinnedHostSlice, ValidAsZeroBits};
use candle_core::{CudaDevice, Error, Result, Shape, Tensor};

use super::{Element, Output};

/// The host fills one buffer while the copy out of the other waits for its turn on the GPU.
pub struct Upload<T: Element + ValidAsZeroBits> {
    buffers: [Option<Buffer<T>>; 2],
    turn: usize,
}

impl<T: Element + ValidAsZeroBits> Default for Upload<T> {
    fn default() -> Self {
        Self {
            buffers: [None, None],
            turn: 0,
        }
    }
}

struct Buffer<T> {
    memory: PinnedHostSlice<T>,
    /// The end of the last copy out of it. cudarc's own event is not recorded on candle's stream,
    /// the thread's default one.
    copied: Option<CudaEvent>,
}

impl<T> Buffer<T> {
    /// Until the GPU no longer reads it.
    fn wait(&self) -> Result<()> {
        match &self.copied {
            Some(copied) => copied.synchronize().map_err(Error::wrap),
            None => Ok(()),
        }
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        if let Err(e) = self.wait() {
            tracing::warn!("the GPU's copies did not end well: {e}");
        }
    }
}

impl<T: Element + ValidAsZeroBits> Upload<T> {
    /// What `fill` writes, every one of `count` elements, on the GPU. Waits only for the copy
    /// before the last.
    pub fn copy(
        &mut self,
        device: &CudaDevice,
        count: usize,
        fill: impl FnOnce(&mut [T]),
    ) -> Result<Output<T>> {
        let stream = device.cuda_stream();
        self.turn = (self.turn + 1) % self.buffers.len();
        let buffer = &mut self.buffers[self.turn];
        if buffer.as_ref().is_none_or(|b| b.memory.len() != count) {
            // SAFETY: any bits are a T, and all elements are written before they are read.
            let memory = unsafe { stream.context().alloc_pinned::<T>(count) };
            *buffer = Some(Buffer {
                memory: memory.map_err(Error::wrap)?,
                copied: None,
            });
        }
        let buffer = buffer.as_mut().expect("filled above");
        buffer.wait()?;
        fill(buffer.memory.as_mut_slice().map_err(Error::wrap)?);
        let mut there = Output::new(device, count)?;
        stream
            .memcpy_htod(&buffer.memory, there.slice_mut())
            .map_err(Error::wrap)?;
        buffer.copied = Some(stream.record_event(None).map_err(Error::wrap)?);
        Ok(there)
    }

    /// [`Upload::copy`] as a tensor.
    pub fn tensor(
        &mut self,
        device: &CudaDevice,
        shape: impl Into<Shape>,
        fill: impl FnOnce(&mut [T]),
    ) -> Result<Tensor> {
        let shape = shape.into();
        let there = self.copy(device, shape.elem_count(), fill)?;
        Ok(there.tensor(shape))
    }
}
