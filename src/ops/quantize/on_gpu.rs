//! Algorithm 1 on tensors on a GPU, for the sizes that the kernels support.

use candle_core::{CudaDevice, Result, Tensor};

use super::cuda::{ExamplesAt, NoiseAt, QuantizedAt, Tables, Until};
use super::{Codebook, Examples, Noise, Perturbation, Quantized, Schedule};
use crate::ops::cuda::{Buffer, Gpu, address, fresh};

/// Whether the kernels support latents v [B,h,w,d].
pub fn serves(v: &Tensor) -> bool {
    v.dims4().is_ok_and(|(_, _, _, d)| Tables::serve(d))
}

pub fn recurrent_quantize(
    device: &CudaDevice,
    v: &Tensor,
    codebook: &Codebook,
    noise: &Noise,
    schedule: &Schedule,
) -> Result<Quantized> {
    let (b, h, w, d) = v.dims4()?;
    let (gpu, v, steps) = (Gpu::of(device)?, v.contiguous()?, schedule.steps());
    let source = Source::new(&gpu, noise)?;
    let (codes, codes_at) = fresh::<u32>(device, (steps, b, h, w))?;
    let (sums, sums_at) = fresh::<f32>(device, (steps + 1, b, h, w, d))?;
    let (noisy, noisy_at) = fresh::<f32>(device, (steps, b, h, w, d))?;
    let to = QuantizedAt {
        codes: codes_at,
        sums: sums_at,
        noisy: noisy_at,
    };
    Tables::new(&gpu, codebook, schedule)?.all(
        &gpu,
        address::<f32>(&v)?,
        [b, h, w],
        source.at,
        to,
    )?;
    Ok(Quantized { codes, sums, noisy })
}

pub fn quantize_until(
    device: &CudaDevice,
    v: &Tensor,
    codebook: &Codebook,
    noise: &Noise,
    schedule: &Schedule,
    t: &[u32],
    perturbation: Option<&Perturbation>,
) -> Result<Examples> {
    let (b, h, w, d) = v.dims4()?;
    let (gpu, v) = (Gpu::of(device)?, v.contiguous()?);
    let source = Source::new(&gpu, noise)?;
    let order = Buffer::from_host(&gpu, &Until::longest_first(t))?;
    let t = Buffer::from_host(&gpu, t)?;
    let until = Until {
        t: t.address(),
        order: order.address(),
    };
    let (noise, noise_at) = fresh::<f32>(device, (b, h, w, d))?;
    let (sum, sum_at) = fresh::<f32>(device, (b, h, w, d))?;
    let (codes, codes_at) = fresh::<u32>(device, (b, h, w))?;
    let to = ExamplesAt {
        noise: noise_at,
        sum: sum_at,
        codes: codes_at,
    };
    let mut tables = Tables::new(&gpu, codebook, schedule)?;
    if let Some(perturbation) = perturbation {
        tables.perturb(&gpu, perturbation)?;
    }
    tables.until(&gpu, address::<f32>(&v)?, [b, h, w], source.at, until, to)?;
    Ok(Examples { noise, sum, codes })
}

/// ε_t's address, and the tensors that must live until the launch.
struct Source {
    at: NoiseAt,
    _given: Option<Tensor>,
    _indices: Option<Buffer<u64>>,
}

impl Source {
    fn new(gpu: &Gpu, noise: &Noise) -> Result<Self> {
        Ok(match *noise {
            Noise::Given(noise) => {
                let noise = noise.contiguous()?;
                Self {
                    at: NoiseAt::Given(address::<f32>(&noise)?),
                    _given: Some(noise),
                    _indices: None,
                }
            }
            Noise::Drawn { seed, indices } => {
                let indices = Buffer::from_host(gpu, indices)?;
                Self {
                    at: NoiseAt::Drawn {
                        seed,
                        indices: indices.address(),
                    },
                    _given: None,
                    _indices: Some(indices),
                }
            }
        })
    }
}
