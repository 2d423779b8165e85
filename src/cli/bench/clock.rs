//! Times measured on the GPU with CUDA events.

use candle_core::cuda_backend::cudarc::driver::sys::CUevent_flags;

use crate::error::Result;
use crate::ops::cuda::{Buffer, Gpu};
use crate::ops::product::cublaslt::Product;

const WARM_UP: usize = 3;
/// Side of the square matmul and size of the copy whose rates are this GPU's ceilings.
const CEILING_SIDE: usize = 8192;
const CEILING_BYTES: usize = 1 << 30;

/// Times of `repeats` runs of `work` in milliseconds, after warm-up runs.
pub fn times(
    gpu: &Gpu,
    repeats: usize,
    work: impl Fn() -> candle_core::Result<()>,
) -> Result<Vec<f64>> {
    for _ in 0..WARM_UP {
        work()?;
    }
    gpu.synchronize()?;
    let event = || {
        gpu.stream()
            .record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))
    };
    (0..repeats)
        .map(|_| {
            let begin = event()?;
            work()?;
            let end = event()?;
            Ok(f64::from(begin.elapsed_ms(&end)?))
        })
        .collect()
}

/// Measured peak rates of this GPU: FLOP/s of a large bf16 matmul, bytes/s (read plus written) of a
/// large copy.
#[derive(Debug, Clone, Copy)]
pub struct Ceilings {
    pub flop: f64,
    pub bytes: f64,
}

impl Ceilings {
    pub fn measure(gpu: &Gpu) -> Result<Self> {
        let n = CEILING_SIDE;
        let random = random_bf16(gpu, n * n)?;
        let out = Buffer::<half::bf16>::zeros(gpu, n * n)?;
        let product = Product::forward(n, n, n);
        let a = random.view();
        let run = || gpu.matmul()?.run(gpu, &product, a, a, out.view_mut(), None);
        let [ms, ..] = super::spread(&times(gpu, 10, run)?);
        let flop = product.flop() / ms * 1e3;
        let (from, to) = (
            Buffer::<u8>::zeros(gpu, CEILING_BYTES)?,
            Buffer::<u8>::zeros(gpu, CEILING_BYTES)?,
        );
        let [ms, ..] = super::spread(&times(gpu, 10, || to.copy_from(&from))?);
        Ok(Self {
            flop,
            bytes: 2.0 * CEILING_BYTES as f64 / ms * 1e3,
        })
    }

    /// Lower bound of the work's time in milliseconds.
    pub fn floor(&self, flop: f64, bytes: f64) -> f64 {
        1e3 * (flop / self.flop).max(bytes / self.bytes)
    }
}

/// About normally distributed values: one million draws, repeated.
pub fn random_bf16(gpu: &Gpu, len: usize) -> Result<Buffer<half::bf16>> {
    let mut values = vec![0f32; (1 << 20).min(len)];
    crate::rng::Stream::new(1, crate::rng::Purpose::Noise, 0, 1).fill_normal(&mut values);
    let values: Vec<half::bf16> = values
        .iter()
        .cycle()
        .take(len)
        .map(|&x| half::bf16::from_f32(x))
        .collect();
    Ok(Buffer::from_host(gpu, &values)?)
}
