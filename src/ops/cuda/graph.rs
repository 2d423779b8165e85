//! Work on a GPU that is recorded once and launched again as a whole (a CUDA graph), for work whose
//! kernels take less time than the host needs to launch them.

use candle_core::cuda_backend::cudarc::driver::{CudaGraph, sys};
use candle_core::{Result, bail};

use super::Gpu;
use crate::ops::channel_norm::left;

pub struct Graph(CudaGraph);

// SAFETY: a graph may move to another thread; it is not shared, so one thread at a time uses it.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `work` launches on the GPU's stream; nothing of it runs yet. Everything that it
    /// reads and leaves behind lies in memory that outlives the graph. What it allocates, it frees:
    /// the graph keeps such memory for its own launches. The same work ran once before, so that
    /// kernels are loaded and algorithms chosen.
    ///
    /// Errors: `work` waits for the GPU, or copies from the host.
    pub fn capture(gpu: &Gpu, work: impl FnOnce() -> Result<()>) -> Result<Self> {
        gpu.synchronize()?;
        // A convolution's tiles that no norm has taken would be freed inside, or outlive the graph.
        left::leave(None);
        let stream = gpu.stream();
        stream
            .begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            .map_err(candle_core::Error::wrap)?;
        let launched = work();
        left::leave(None);
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0));
        launched?;
        match graph.map_err(candle_core::Error::wrap)? {
            Some(graph) => Ok(Self(graph)),
            None => bail!("the driver captured no work"),
        }
    }

    /// In the stream's order.
    pub fn launch(&self) -> Result<()> {
        self.0.launch().map_err(candle_core::Error::wrap)
    }
}
