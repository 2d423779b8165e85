//! The GPU side: one kernel runs all steps of an image (`kernel.cu`); this file prepares what it reads and launches it.

use candle_core::{DType, Device, Result, Tensor, bail};
use half::bf16;

use super::{Codebook, Schedule};
use crate::ops::cuda::{Buffer, Gpu};

/// Codes the kernel reads at a time: the tables are padded to a multiple.
const TILE: usize = 256;
/// Stages of tiles in shared memory.
const STAGES: usize = 3;
/// Positions a block holds.
const POSITIONS: usize = 256;

/// A frozen codebook in the forms the kernel reads: bf16 and f32 rows, −½|e|², and what a code adds to itself and its neighbours.
pub struct Tables {
    codes_bf16: Buffer<bf16>,
    codes_f32: Buffer<f32>,
    minus_half_norms: Buffer<f32>,
    taps: Buffer<f32>,
    bias: Option<Buffer<f32>>,
    largest_norm: Buffer<f32>,
    alpha: Buffer<f32>,
    beta: Buffer<f32>,
    k: usize,
    d: usize,
    steps: usize,
    taps_count: usize,
}

/// Where ε_t comes from: an address of f32 [T,B,N,d], or the streams of `seed` and the indices u64 [B] at an address.
#[derive(Debug, Clone, Copy)]
pub enum NoiseAt {
    Given(u64),
    Drawn { seed: u64, indices: u64 },
}

/// Where the results of [`Tables::until`] go: ε_t and z'_{t−1} f32 [B,N,d], codes u32 [B,N].
#[derive(Debug, Clone, Copy)]
pub struct ExamplesAt {
    pub noise: u64,
    pub sum: u64,
    pub codes: u64,
}

/// Where the results of [`Tables::all`] go: codes u32 [T,B,N], z'_0..z'_T f32 [T+1,B,N,d], v_t f32 [T,B,N,d].
#[derive(Debug, Clone, Copy)]
pub struct QuantizedAt {
    pub codes: u64,
    pub sums: u64,
    pub noisy: u64,
}

/// The kernel's argument, as in `kernel.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Arguments {
    latents: u64,
    noise: u64,
    indices: u64,
    codes_bf16: u64,
    codes_f32: u64,
    minus_half_norms: u64,
    taps: u64,
    bias: u64,
    largest_norm: u64,
    alpha: u64,
    beta: u64,
    codes: u64,
    sums: u64,
    noisy: u64,
    until: u64,
    until_noise: u64,
    until_sum: u64,
    until_codes: u64,
    seed: [u32; 2],
    batch: i32,
    height: i32,
    width: i32,
    k: i32,
    steps: i32,
    taps_count: i32,
}

impl Tables {
    /// Whether the kernel serves these sizes; the oracle serves the rest.
    pub fn fit(d: usize, tokens: usize) -> bool {
        [16, 32, 64].contains(&d) && tokens <= POSITIONS
    }

    /// Errors: d or the shapes are not what the kernel serves.
    pub fn new(gpu: &Gpu, codebook: &Codebook, schedule: &Schedule) -> Result<Self> {
        let (k, d) = codebook.dims()?;
        if !Self::fit(d, 1) {
            bail!("quantize: the kernel serves d = 16, 32 and 64, found {d}");
        }
        let on_cpu = |x: &Tensor| x.detach().to_device(&Device::Cpu)?.to_dtype(DType::F32);
        let embedding = on_cpu(&codebook.embedding)?;
        let rows = embedding.to_vec2::<f32>()?;
        let square = |row: &Vec<f32>| {
            row.iter()
                .map(|&x| f64::from(x) * f64::from(x))
                .sum::<f64>()
        };
        let squares: Vec<f64> = rows.iter().map(square).collect();
        let padded = k.next_multiple_of(TILE);
        let mut halves: Vec<bf16> = rows.iter().flatten().map(|&x| bf16::from_f32(x)).collect();
        halves.resize(padded * d, bf16::ZERO);
        let mut norms: Vec<f32> = squares.iter().map(|s| (-0.5 * s) as f32).collect();
        norms.resize(padded, f32::NEG_INFINITY);
        let largest = squares.iter().fold(0f64, |a, &b| a.max(b)).sqrt() as f32;
        let (taps, taps_count) = match &codebook.bias {
            None => (embedding.clone(), 1),
            Some((weight, _)) => {
                // [k,c]·[c, tap·out], and e itself in the middle.
                let by_input = on_cpu(weight)?
                    .permute((1, 2, 3, 0))?
                    .contiguous()?
                    .reshape((d, 9 * d))?;
                let taps = embedding.matmul(&by_input)?.reshape((k, 9, d))?;
                let own = (taps.narrow(1, 4, 1)? + embedding.unsqueeze(1)?)?;
                (taps.slice_assign(&[0..k, 4..5, 0..d], &own)?, 9)
            }
        };
        let bias = match &codebook.bias {
            Some((_, bias)) => Some(Buffer::from_host(gpu, &on_cpu(bias)?.to_vec1::<f32>()?)?),
            None => None,
        };
        Ok(Self {
            codes_bf16: Buffer::from_host(gpu, &halves)?,
            codes_f32: Buffer::from_host(gpu, &rows.concat())?,
            minus_half_norms: Buffer::from_host(gpu, &norms)?,
            taps: Buffer::from_host(gpu, &taps.flatten_all()?.to_vec1::<f32>()?)?,
            bias,
            largest_norm: Buffer::from_host(gpu, &[largest])?,
            alpha: Buffer::from_host(gpu, &schedule.alpha)?,
            beta: Buffer::from_host(gpu, &schedule.beta)?,
            k,
            d,
            steps: schedule.steps(),
            taps_count,
        })
    }

    /// One training example an image: the latents f32 [B,h·w,d] at an address, stopped at each image's `t` u32 [B].
    pub fn until(
        &self,
        gpu: &Gpu,
        latents: u64,
        [b, h, w]: [usize; 3],
        noise: NoiseAt,
        t: u64,
        to: ExamplesAt,
    ) -> Result<()> {
        self.launch(
            gpu,
            [b, h, w],
            noise,
            Arguments {
                latents,
                until: t,
                until_noise: to.noise,
                until_sum: to.sum,
                until_codes: to.codes,
                ..Arguments::default()
            },
        )
    }

    /// All steps of the latents f32 [B,h·w,d] at an address.
    pub fn all(
        &self,
        gpu: &Gpu,
        latents: u64,
        [b, h, w]: [usize; 3],
        noise: NoiseAt,
        to: QuantizedAt,
    ) -> Result<()> {
        self.launch(
            gpu,
            [b, h, w],
            noise,
            Arguments {
                latents,
                codes: to.codes,
                sums: to.sums,
                noisy: to.noisy,
                ..Arguments::default()
            },
        )
    }

    fn launch(
        &self,
        gpu: &Gpu,
        [b, h, w]: [usize; 3],
        noise: NoiseAt,
        arguments: Arguments,
    ) -> Result<()> {
        if !Self::fit(self.d, h * w) {
            bail!("quantize: the kernel serves up to {POSITIONS} positions, found {h}×{w}");
        }
        let (noise, seed, indices) = match noise {
            NoiseAt::Given(noise) => (noise, 0, 0),
            NoiseAt::Drawn { seed, indices } => (0, seed, indices),
        };
        let arguments = Arguments {
            noise,
            indices,
            seed: [seed as u32, (seed >> 32) as u32],
            codes_bf16: self.codes_bf16.address(),
            codes_f32: self.codes_f32.address(),
            minus_half_norms: self.minus_half_norms.address(),
            taps: self.taps.address(),
            bias: self.bias.as_ref().map_or(0, Buffer::address),
            largest_norm: self.largest_norm.address(),
            alpha: self.alpha.address(),
            beta: self.beta.address(),
            batch: b as i32,
            height: h as i32,
            width: w as i32,
            k: self.k as i32,
            steps: self.steps as i32,
            taps_count: self.taps_count as i32,
            ..arguments
        };
        let (d, images) = (self.d, (POSITIONS / (h * w)).max(1));
        let tiles = STAGES * TILE * (2 * d + 4);
        let shared = (tiles + POSITIONS * (2 * d + 4 * (d + 4) + 8)) as u32;
        let kernel = gpu.kernel("quantize", &format!("quantize_{d}"), shared)?;
        let mut launch = gpu.launch(&kernel);
        launch.structure(&arguments);
        // SAFETY: `Arguments` is the kernel's, and the caller's addresses reach over [B,h·w,d].
        unsafe { launch.run((b.div_ceil(images) as u32, 1, 1), POSITIONS as u32, shared) }
    }
}
