//! Custom GPU kernels for sampling (Algorithm 2, Eq. 8): from logits to codes, and from codes to
//! the next step's inputs (`kernel.cu`).
//!
//! Their reference is the CPU's [`choose`](crate::sample::choose), `Codebook::lookup` and `rng`:
//! uniforms and normals are bit-identical.

use candle_core::{Result, bail};

use super::cuda::Gpu;

const THREADS: u32 = 256;

/// Addresses of the seed, u32 [2], and of the samples' numbers, u64 [B].
#[derive(Debug, Clone, Copy)]
pub struct Streams {
    pub seed: u64,
    pub indices: u64,
}

/// The operations on the logits of step t.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cuts {
    /// λ_t, 0 if there is no unconditional half.
    pub lambda: f32,
    pub tau: f32,
    pub top_k: Option<usize>,
    pub top_p: Option<f32>,
    pub gumbel: bool,
    pub t: usize,
}

/// From logits bf16 [B,N,K], followed by the unconditional ones if λ ≠ 0, to codes u32 [B,N]; the
/// first damaged row goes to u32 [1].
///
/// Errors: the kernel does not support K.
#[allow(clippy::too_many_arguments)] // sizes, three addresses and what to do
pub fn choose(
    gpu: &Gpu,
    [b, n, k]: [usize; 3],
    logits: u64,
    streams: Streams,
    codes: u64,
    damaged: u64,
    cuts: &Cuts,
) -> Result<()> {
    if !k.is_multiple_of(8) || k > 16384 {
        bail!("sample: the kernel supports up to 16384 codes, a multiple of 8, found {k}");
    }
    let chunks = (k.div_ceil(8 * THREADS as usize)).next_power_of_two();
    let cut = cuts.top_k.is_some() || cuts.top_p.is_some();
    let name = format!("sample_choose_{}{chunks}", if cut { "cut_" } else { "" });
    let kernel = gpu.kernel("sample", &name, 0)?;
    let mut launch = gpu.launch(&kernel);
    launch.early();
    launch.value(logits);
    launch.value(if cuts.lambda == 0.0 {
        0
    } else {
        (b * n * k) as u64
    });
    launch.value(streams.seed);
    launch.value(streams.indices);
    launch.value(codes);
    launch.value(damaged);
    launch.value(n as i32);
    launch.value(k as i32);
    launch.value(cuts.lambda);
    launch.value(cuts.tau);
    launch.value(cuts.top_p.unwrap_or(1.0));
    launch.value(cuts.top_k.unwrap_or(0) as i32);
    launch.value(i32::from(cuts.gumbel));
    launch.value(cuts.t as i32);
    // SAFETY: the arguments match the kernel's; the caller's addresses cover the shapes named
    // above.
    unsafe { launch.run(((b * n) as u32, 1, 1), THREADS, 0) }
}

/// Inputs and outputs of [`advance`]: addresses, 0 for none.
#[derive(Debug, Clone, Copy)]
pub struct Advance {
    /// c_{t−1} u32 [B,N]; none before the first step.
    pub codes: u64,
    /// z'_{t−2} and z'_{t−1} f32 [B,N,d].
    pub before: u64,
    pub after: u64,
    /// [ε_t | z'_{t−1}] bf16 [copies·B,N,2d]; none after the last step.
    pub rows: u64,
    pub copies: usize,
    pub t: usize,
}

/// z'_{t−1} from the codes of the previous step, and step t's input rows; `lookup` is the
/// quantizer's (taps, bias, count).
pub fn advance(
    gpu: &Gpu,
    [b, h, w, d]: [usize; 4],
    (taps, bias, count): (u64, u64, usize),
    streams: Streams,
    at: &Advance,
) -> Result<()> {
    let kernel = gpu.kernel("sample", "sample_advance", 0)?;
    let mut launch = gpu.launch(&kernel);
    launch.early();
    for address in [
        at.codes,
        taps,
        bias,
        at.before,
        at.after,
        at.rows,
        streams.seed,
        streams.indices,
    ] {
        launch.value(address);
    }
    for size in [b, h, w, d, count, at.t, at.copies] {
        launch.value(size as i32);
    }
    let grid = (b * h * w * d / 4).div_ceil(THREADS as usize) as u32;
    // SAFETY: as above.
    unsafe { launch.run((grid, 1, 1), THREADS, 0) }
}
