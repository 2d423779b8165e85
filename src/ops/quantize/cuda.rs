//! The GPU version: one kernel runs all steps of an image (`kernel_sm90.cu` on sm_90, `kernel.cu`
//! elsewhere and for d = 64), or three kernels run each step if an image does not fit these
//! (`kernel_any.cu`). This file prepares their inputs and launches them.

use candle_core::{DType, Device, Result, Tensor, bail};
use half::{bf16, f16};

use super::{Codebook, Perturbation, Schedule};
use crate::ops::cuda::{Buffer, Gpu, View, ViewMut};

/// Codes that `kernel.cu` reads at a time; tables are padded to a multiple of it. Pipeline stages
/// of tiles in shared memory.
const TILE: usize = 256;
const STAGES: usize = 3;
/// The same for `kernel_sm90.cu`, and its number of warps.
const HOPPER_TILE: usize = 128;
const HOPPER_STAGES: usize = 4;
const HOPPER_WARPS: usize = 16;
/// Positions per block of both kernels.
const POSITIONS: usize = 256;
/// Threads per block of `kernel_any.cu`, and positions per block of its search.
const ANY_THREADS: usize = 256;
const ANY_POSITIONS: usize = 64;

/// A frozen codebook in the formats that the kernels read: half-precision tiles, f32 rows, −½|e|²,
/// and what a code adds to itself and its neighbours.
pub struct Tables {
    /// Use `kernel_sm90.cu`.
    hopper: bool,
    /// bf16 rows, or f16 tiles: the bits.
    tiles: Buffer<u16>,
    codes_f32: Buffer<f32>,
    minus_half_norms: Buffer<f32>,
    /// f32 [K,count,d]
    taps: Tensor,
    bias: Option<Buffer<f32>>,
    bounds: Buffer<f32>,
    alpha: Buffer<f32>,
    beta: Buffer<f32>,
    k: usize,
    d: usize,
    steps: usize,
    taps_count: usize,
    /// Codes near each [K,8] and the word below which one gives way, for [`Tables::until`].
    perturbation: Option<(Buffer<u32>, u32)>,
}

/// The source of ε_t: f32 [T,B,N,d], or the streams of `seed` and of the indices [B].
#[derive(Clone, Copy)]
pub enum NoiseAt<'a> {
    Given(View<'a, f32>),
    Drawn { seed: u64, indices: View<'a, u64> },
}

/// The step [B] in 1..T at which each image stops, and the images' indices [B] in processing order.
#[derive(Clone, Copy)]
pub struct Until<'a> {
    pub t: View<'a, u32>,
    pub order: View<'a, u32>,
}

impl Until<'_> {
    /// Longest-first schedule, to balance blocks; images with equal t share a block.
    pub fn longest_first(t: &[u32]) -> Vec<u32> {
        let mut order: Vec<u32> = (0..t.len() as u32).collect();
        order.sort_by_key(|&image| std::cmp::Reverse(t[image as usize]));
        order
    }
}

/// Destination of [`Tables::until`]: ε_t and z'_{t−1} f32 [B,N,d], codes u32 [B,N].
pub struct ExamplesAt<'a> {
    pub noise: ViewMut<'a, f32>,
    pub sum: ViewMut<'a, f32>,
    pub codes: ViewMut<'a, u32>,
}

/// Destination of [`Tables::all`], each if it is wanted: codes u32 [T,B,N], z'_0..z'_T f32
/// [T+1,B,N,d], v_t f32 [T,B,N,d].
#[derive(Default)]
pub struct QuantizedAt<'a> {
    pub codes: Option<ViewMut<'a, u32>>,
    pub sums: Option<ViewMut<'a, f32>>,
    pub noisy: Option<ViewMut<'a, f32>>,
}

/// What a code adds to itself and its neighbours f32 [K,count,d], count 9 or 1, and the
/// convolution's bias [d].
#[derive(Clone, Copy)]
pub struct Lookup<'a> {
    pub taps: View<'a, f32>,
    pub bias: Option<View<'a, f32>>,
    pub count: usize,
}

/// The kernels' argument, as in `arguments.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Arguments {
    latents: u64,
    noise: u64,
    indices: u64,
    tiles: u64,
    codes_f32: u64,
    minus_half_norms: u64,
    taps: u64,
    bias: u64,
    bounds: u64,
    alpha: u64,
    beta: u64,
    codes: u64,
    sums: u64,
    noisy: u64,
    until: u64,
    order: u64,
    until_noise: u64,
    until_sum: u64,
    until_codes: u64,
    nearest: u64,
    seed: [u32; 2],
    batch: i32,
    height: i32,
    width: i32,
    k: i32,
    steps: i32,
    taps_count: i32,
    perturb_below: u32,
}

/// The argument of the kernels of one step, as in `kernel_any.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Step {
    arguments: Arguments,
    residual: u64,
    sum: u64,
    v: u64,
    chosen: u64,
    step: i32,
    d: i32,
}

impl Tables {
    /// Whether the kernels support latents of `d` channels.
    pub fn serve(d: usize) -> bool {
        d.is_multiple_of(4)
    }

    /// Whether an image of these sizes fits in one block.
    fn fit(d: usize, tokens: usize) -> bool {
        [16, 32, 64].contains(&d) && tokens <= POSITIONS
    }

    /// Errors: the kernels do not support d; shapes that do not match.
    pub fn new(gpu: &Gpu, codebook: &Codebook, schedule: &Schedule) -> Result<Self> {
        let (k, d) = codebook.dims()?;
        if !Self::serve(d) {
            bail!("the GPU quantizer supports latents with a multiple of 4 channels, found {d}");
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
        let mut norms: Vec<f32> = squares.iter().map(|s| (-0.5 * s) as f32).collect();
        norms.resize(k.next_multiple_of(TILE), f32::NEG_INFINITY);
        let largest = squares.iter().fold(0f64, |a, &b| a.max(b)).sqrt();
        let hopper = gpu.is_hopper() && d <= 32 && Self::fit(d, 1);
        let (tiles, bounds) = if hopper {
            let scaled = Scaled::new(largest, d);
            (scaled.tiles(&rows, &squares), scaled.bounds(d))
        } else {
            let bits = |x: &f32| bf16::from_f32(*x).to_bits();
            let mut tiles: Vec<u16> = rows.iter().flatten().map(bits).collect();
            tiles.resize(k.next_multiple_of(TILE) * d, 0);
            (tiles, [largest as f32, 0.0, 0.0, 0.0])
        };
        let device = Device::Cuda(gpu.device().clone());
        let on_gpu = |x: &Tensor| x.detach().to_device(&device)?.to_dtype(DType::F32);
        let (taps, taps_count) = match &codebook.bias {
            None => (on_gpu(&embedding)?, 1),
            Some((weight, _)) => {
                // [k,c]·[c, offset·out], plus e itself at the centre offset.
                let (weight, embedding) = (on_gpu(weight)?, on_gpu(&embedding)?);
                let by_input = weight.permute((1, 2, 3, 0))?.contiguous()?;
                let taps = embedding.matmul(&by_input.reshape((d, 9 * d))?)?;
                let taps = taps.reshape((k, 9, d))?;
                let own = (taps.narrow(1, 4, 1)? + embedding.unsqueeze(1)?)?;
                let taps = [taps.narrow(1, 0, 4)?, own, taps.narrow(1, 5, 4)?];
                (Tensor::cat(&taps, 1)?.contiguous()?, 9)
            }
        };
        let bias = match &codebook.bias {
            Some((_, bias)) => Some(Buffer::from_host(gpu, &on_cpu(bias)?.to_vec1::<f32>()?)?),
            None => None,
        };
        Ok(Self {
            hopper,
            tiles: Buffer::from_host(gpu, &tiles)?,
            codes_f32: Buffer::from_host(gpu, &rows.concat())?,
            minus_half_norms: Buffer::from_host(gpu, &norms)?,
            taps,
            bias,
            bounds: Buffer::from_host(gpu, &bounds)?,
            alpha: Buffer::from_host(gpu, &schedule.alpha)?,
            beta: Buffer::from_host(gpu, &schedule.beta)?,
            k,
            d,
            steps: schedule.steps(),
            taps_count,
            perturbation: None,
        })
    }

    /// Perturbs the codes before each image's own step in [`Tables::until`].
    pub fn perturb(&mut self, gpu: &Gpu, by: &Perturbation) -> Result<()> {
        self.perturbation = Some((Buffer::from_host(gpu, &by.nearest)?, by.below));
        Ok(())
    }

    /// What a code becomes in the sum.
    pub fn lookup(&self) -> Result<Lookup<'_>> {
        Ok(Lookup {
            taps: View::of(&self.taps)?,
            bias: self.bias.as_ref().map(Buffer::view),
            count: self.taps_count,
        })
    }

    /// One training example per image: the latents [B,h·w,d], stopped at each image's own step.
    pub fn until(
        &self,
        gpu: &Gpu,
        latents: View<f32>,
        [b, h, w]: [usize; 3],
        noise: NoiseAt,
        until: Until,
        to: ExamplesAt,
    ) -> Result<()> {
        let (nearest, perturb_below) = match (&self.perturbation, noise) {
            (None, _) => (0, 0),
            (Some((nearest, below)), NoiseAt::Drawn { .. }) => (nearest.view().address(), *below),
            (Some(_), NoiseAt::Given(_)) => {
                bail!("quantize: perturbed codes need noise that is drawn by the images' numbers")
            }
        };
        let (positions, d) = (b * h * w, self.d);
        let arguments = Arguments {
            latents: latents.first(positions * d).address(),
            nearest,
            perturb_below,
            until: until.t.first(b).address(),
            order: until.order.first(b).address(),
            until_noise: to.noise.first(positions * d).address(),
            until_sum: to.sum.first(positions * d).address(),
            until_codes: to.codes.first(positions).address(),
            ..Arguments::default()
        };
        // SAFETY: the views are of the map's sizes.
        unsafe { self.launch(gpu, [b, h, w], noise, arguments) }
    }

    /// All steps of the latents [B,h·w,d].
    pub fn all(
        &self,
        gpu: &Gpu,
        latents: View<f32>,
        [b, h, w]: [usize; 3],
        noise: NoiseAt,
        to: QuantizedAt,
    ) -> Result<()> {
        let (positions, d, steps) = (b * h * w, self.d, self.steps);
        let floats = |to: Option<ViewMut<f32>>, maps: usize| {
            to.map_or(0, |to| to.first(maps * positions * d).address())
        };
        let codes = to
            .codes
            .map_or(0, |to| to.first(steps * positions).address());
        let arguments = Arguments {
            latents: latents.first(positions * d).address(),
            codes,
            sums: floats(to.sums, steps + 1),
            noisy: floats(to.noisy, steps),
            ..Arguments::default()
        };
        // SAFETY: the views are of the map's sizes.
        unsafe { self.launch(gpu, [b, h, w], noise, arguments) }
    }

    /// # Safety
    /// The addresses in `arguments` are 0 or cover the map's sizes.
    unsafe fn launch(
        &self,
        gpu: &Gpu,
        [b, h, w]: [usize; 3],
        noise: NoiseAt,
        arguments: Arguments,
    ) -> Result<()> {
        let (noise, seed, indices) = match noise {
            NoiseAt::Given(noise) => (noise.first(self.steps * b * h * w * self.d).address(), 0, 0),
            NoiseAt::Drawn { seed, indices } => (0, seed, indices.first(b).address()),
        };
        let lookup = self.lookup()?;
        let arguments = Arguments {
            noise,
            indices,
            seed: [seed as u32, (seed >> 32) as u32],
            tiles: self.tiles.view().address(),
            codes_f32: self.codes_f32.view().address(),
            minus_half_norms: self.minus_half_norms.view().address(),
            taps: lookup.taps.address(),
            bias: lookup.bias.map_or(0, |bias| bias.address()),
            bounds: self.bounds.view().address(),
            alpha: self.alpha.view().address(),
            beta: self.beta.view().address(),
            batch: b as i32,
            height: h as i32,
            width: w as i32,
            k: self.k as i32,
            steps: self.steps as i32,
            taps_count: self.taps_count as i32,
            ..arguments
        };
        if !Self::fit(self.d, h * w) {
            // SAFETY: the caller's promise.
            return unsafe { self.by_steps(gpu, arguments) };
        }
        let (d, images) = (self.d, (POSITIONS / (h * w)).max(1));
        let (op, threads, shared) = if self.hopper {
            let tiles = HOPPER_STAGES * (HOPPER_TILE * (d + 16) * 2 + 16);
            let rows = POSITIONS * (3 * (d + 4) * 4 + 2 * 4);
            (
                "quantize_sm90",
                32 * HOPPER_WARPS,
                tiles + rows + HOPPER_WARPS * 32 * 4,
            )
        } else {
            let tiles = STAGES * TILE * (2 * d + 4);
            (
                "quantize",
                POSITIONS,
                tiles + POSITIONS * (2 * d + 4 * (d + 4) + 8),
            )
        };
        let kernel = gpu.kernel(op, &format!("quantize_{d}"), shared as u32)?;
        let mut launch = gpu.launch(&kernel);
        launch.structure(&arguments);
        // SAFETY: `Arguments` matches the kernel's struct; the rest is the caller's promise.
        unsafe {
            launch.run(
                (b.div_ceil(images) as u32, 1, 1),
                threads as u32,
                shared as u32,
            )
        }
    }

    /// The same for images that do not fit in one block.
    ///
    /// # Safety
    /// The addresses in `arguments` are 0 or cover the map's sizes.
    unsafe fn by_steps(&self, gpu: &Gpu, arguments: Arguments) -> Result<()> {
        let a = &arguments;
        let positions = (a.batch * a.height * a.width) as usize;
        let state = || Buffer::<f32>::zeros(gpu, positions * self.d);
        let (residual, sum, v) = (state()?, state()?, state()?);
        let chosen = Buffer::<u32>::zeros(gpu, positions)?;
        let elements = (positions * self.d / 4).div_ceil(ANY_THREADS);
        let kernels = [
            ("quantize_mix", elements),
            ("quantize_nearest", positions.div_ceil(ANY_POSITIONS)),
            ("quantize_take", elements),
        ];
        for step in 0..self.steps as i32 {
            let argument = Step {
                arguments,
                residual: residual.view_mut().address(),
                sum: sum.view_mut().address(),
                v: v.view_mut().address(),
                chosen: chosen.view_mut().address(),
                step,
                d: self.d as i32,
            };
            for (kernel, blocks) in kernels {
                let kernel = gpu.kernel("quantize_any", kernel, 0)?;
                let mut launch = gpu.launch(&kernel);
                launch.structure(&argument);
                // SAFETY: `Step` matches the kernels' struct, and the state has the map's size; the
                // rest is the caller's promise.
                unsafe { launch.run((blocks as u32, 1, 1), ANY_THREADS as u32, 0) }?;
            }
        }
        Ok(())
    }
}

/// The codebook times a power of two, so that half-precision scores neither overflow nor underflow.
struct Scaled {
    scale: f64,
    /// max |e|, unscaled and scaled; max ½|e|² scaled.
    largest: f64,
    length: f64,
    half_square: f64,
    products: f64,
}

impl Scaled {
    /// Scaled norms are at most 16, scaled half squares at most 1000.
    fn new(largest: f64, d: usize) -> Self {
        let square = largest * largest;
        let exponent = (16.0 / largest)
            .log2()
            .min((2000.0 / square).log2())
            .floor();
        let scale = exponent.clamp(-1000.0, 1000.0).exp2(); // no codes but zeros: any scale serves
        Self {
            scale,
            largest,
            length: largest * scale,
            half_square: 0.5 * square * scale,
            products: (d / 16 + 1) as f64,
        }
    }

    /// [K/128][(d+16)/8][128][8] f16: ê, then −½|e|² in two parts, padded with zeros; −65504 beyond
    /// K.
    fn tiles(&self, rows: &[Vec<f32>], squares: &[f64]) -> Vec<u16> {
        let d = rows.first().map_or(0, Vec::len);
        let chunks = (d + 16) / 8;
        let mut tiles = vec![0u16; rows.len().div_ceil(HOPPER_TILE) * chunks * HOPPER_TILE * 8];
        let mut set = |code: usize, column: usize, value: f16| {
            let (tile, within) = (code / HOPPER_TILE, code % HOPPER_TILE);
            let at = ((tile * chunks + column / 8) * HOPPER_TILE + within) * 8 + column % 8;
            tiles[at] = value.to_bits();
        };
        for (code, (row, square)) in rows.iter().zip(squares).enumerate() {
            for (column, &x) in row.iter().enumerate() {
                set(code, column, f16::from_f64(f64::from(x) * self.scale));
            }
            let offset = -0.5 * square * self.scale;
            let high = f16::from_f64(offset);
            set(code, d, high);
            set(code, d + 1, f16::from_f64(offset - high.to_f64()));
        }
        for code in rows.len()..rows.len().next_multiple_of(HOPPER_TILE) {
            set(code, d, f16::MIN);
        }
        tiles
    }

    /// max |e|; a and b of the bound a·|v| + b on the error of the difference of two scores; the
    /// largest |v| that does not overflow.
    ///
    /// A factor has a rounding error of 2⁻¹¹ of itself, or 2⁻²⁵ if it is tiny. Every MMA over 16
    /// columns truncates its sum to eleven bits: an error of at most 2⁻¹⁰ of |v||e| + ½|e|².
    fn bounds(&self, d: usize) -> [f32; 4] {
        let (cut, tiny) = (1.0 / 1024.0, (d as f64).sqrt() * (-25f64).exp2());
        let factors = 1.001 * cut + self.products * 1.01 * cut;
        let offset = self.half_square * ((-22f64).exp2() + self.products * cut) + (-25f64).exp2();
        [
            self.largest as f32,
            (2.02 * (self.length * factors + tiny)) as f32,
            (2.02 * (self.length * tiny + offset)) as f32,
            (0.99 * (60_000.0 - self.half_square) / self.length.max(f64::MIN_POSITIVE)) as f32,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaled_scores_stay_in_half_precisions_range() {
        for largest in [1e-6, 0.3, 5.0, 70.0, 1e5] {
            let scaled = Scaled::new(largest, 32);
            assert!(
                scaled.length <= 16.0 && scaled.half_square <= 1000.0,
                "{largest}"
            );
            assert!(
                scaled.length > 8.0 || scaled.half_square > 500.0,
                "{largest}"
            );
            let [_, a, b, limit] = scaled.bounds(32);
            assert!(a > 0.0 && b > 0.0 && f64::from(limit) * scaled.length < 60_000.0);
        }
    }
}
