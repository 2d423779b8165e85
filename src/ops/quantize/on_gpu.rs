//! Algorithm 1 on tensors on a GPU, for the sizes that the kernels support.

use candle_core::{CudaDevice, Result, Tensor};

use super::cuda::{ExamplesAt, NoiseAt, QuantizedAt, Tables, Until};
use super::{Codebook, Examples, Noise, Perturbation, Quantized, Schedule};
use crate::ops::cuda::{Buffer, Gpu, Output, View};

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
    let floats = |maps: usize| Output::<f32>::new(device, maps * b * h * w * d);
    let mut codes = Output::<u32>::new(device, steps * b * h * w)?;
    let (mut sums, mut noisy) = (floats(steps + 1)?, floats(steps)?);
    let to = QuantizedAt {
        codes: Some(codes.view_mut()),
        sums: Some(sums.view_mut()),
        noisy: Some(noisy.view_mut()),
    };
    let tables = Tables::new(&gpu, codebook, schedule)?;
    tables.all(&gpu, View::of(&v)?, [b, h, w], source.view()?, to)?;
    Ok(Quantized {
        codes: codes.tensor((steps, b, h, w)),
        sums: sums.tensor((steps + 1, b, h, w, d)),
        noisy: noisy.tensor((steps, b, h, w, d)),
    })
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
        t: t.view(),
        order: order.view(),
    };
    let floats = || Output::<f32>::new(device, b * h * w * d);
    let (mut noise, mut sum) = (floats()?, floats()?);
    let mut codes = Output::<u32>::new(device, b * h * w)?;
    let to = ExamplesAt {
        noise: noise.view_mut(),
        sum: sum.view_mut(),
        codes: codes.view_mut(),
    };
    let mut tables = Tables::new(&gpu, codebook, schedule)?;
    if let Some(perturbation) = perturbation {
        tables.perturb(&gpu, perturbation)?;
    }
    tables.until(&gpu, View::of(&v)?, [b, h, w], source.view()?, until, to)?;
    Ok(Examples {
        noise: noise.tensor((b, h, w, d)),
        sum: sum.tensor((b, h, w, d)),
        codes: codes.tensor((b, h, w)),
    })
}

/// ε_t on the GPU.
enum Source {
    Given(Tensor),
    Drawn { seed: u64, indices: Buffer<u64> },
}

impl Source {
    fn new(gpu: &Gpu, noise: &Noise) -> Result<Self> {
        Ok(match *noise {
            Noise::Given(noise) => Self::Given(noise.contiguous()?),
            Noise::Drawn { seed, indices } => Self::Drawn {
                seed,
                indices: Buffer::from_host(gpu, indices)?,
            },
        })
    }

    fn view(&self) -> Result<NoiseAt<'_>> {
        Ok(match self {
            Self::Given(noise) => NoiseAt::Given(View::of(noise)?),
            Self::Drawn { seed, indices } => NoiseAt::Drawn {
                seed: *seed,
                indices: indices.view(),
            },
        })
    }
}
