//! Custom GPU kernels for sampling (Algorithm 2, Eq. 8): from logits to codes, and from codes to
//! the next step's inputs (`kernel.cu`).
//!
//! Their reference is the CPU's [`choose`](crate::sample::choose), `Codebook::lookup` and `rng`:
//! uniforms and normals are bit-identical.

use candle_core::{Result, bail};
use half::bf16;

use super::cuda::{Gpu, View, ViewMut, launch};
use super::quantize::cuda::Lookup;

const THREADS: u32 = 256;

/// The seed's low and high word [2], and the samples' numbers [B].
#[derive(Clone, Copy)]
pub struct Streams<'a> {
    pub seed: View<'a, u32>,
    pub indices: View<'a, u64>,
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

/// From logits [B,N,K], followed by the unconditional ones if λ ≠ 0, to codes [B,N]; the first
/// damaged row goes to `damaged` [1].
///
/// Errors: the kernel does not support K.
pub fn choose(
    gpu: &Gpu,
    [b, n, k]: [usize; 3],
    logits: View<bf16>,
    streams: Streams,
    codes: ViewMut<u32>,
    damaged: ViewMut<u32>,
    cuts: &Cuts,
) -> Result<()> {
    if !k.is_multiple_of(8) || k > 16384 {
        bail!("sample: the kernel supports up to 16384 codes, a multiple of 8, found {k}");
    }
    let chunks = (k.div_ceil(8 * THREADS as usize)).next_power_of_two();
    let cut = cuts.top_k.is_some() || cuts.top_p.is_some();
    let name = format!("sample_choose_{}{chunks}", if cut { "cut_" } else { "" });
    let unconditional = if cuts.lambda == 0.0 { 0 } else { b * n * k };
    let grid = ((b * n) as u32, 1, 1);
    // SAFETY: the arguments are the kernel's, and views of the sizes that it walks over.
    unsafe {
        launch!(early gpu, "sample", &name, grid, THREADS, 0;
            logits.first(b * n * k + unconditional), unconditional as u64,
            streams.seed.first(2), streams.indices.first(b), codes.first(b * n), damaged.first(1),
            n as i32, k as i32, cuts.lambda, cuts.tau, cuts.top_p.unwrap_or(1.0),
            cuts.top_k.unwrap_or(0) as i32, i32::from(cuts.gumbel), cuts.t as i32)
    }
}

/// Inputs and outputs of [`advance`].
pub struct Advance<'a> {
    /// c_{t−1} [B,N]; none before the first step.
    pub codes: Option<View<'a, u32>>,
    /// z'_{t−2} and z'_{t−1} [B,N,d]; none for z'_0 = 0.
    pub before: Option<View<'a, f32>>,
    pub after: Option<ViewMut<'a, f32>>,
    /// [ε_t | z'_{t−1}] [copies·B,N,2d]; none after the last step.
    pub rows: Option<ViewMut<'a, bf16>>,
    pub copies: usize,
    pub t: usize,
}

/// z'_{t−1} from the codes of the previous step, and step t's input rows; `lookup` is the
/// quantizer's.
pub fn advance(
    gpu: &Gpu,
    [b, h, w, d]: [usize; 4],
    lookup: Lookup,
    streams: Streams,
    at: Advance,
) -> Result<()> {
    assert!(
        at.codes.is_none() || at.after.is_some(),
        "codes are added to a sum"
    );
    let (positions, map) = (b * h * w, b * h * w * d);
    let grid = ((map / 4).div_ceil(THREADS as usize) as u32, 1, 1);
    let sizes = [b, h, w, d, lookup.count, at.t, at.copies].map(|size| size as i32);
    // SAFETY: the arguments are the kernel's, and views of the sizes that it walks over; a code is
    // below K.
    unsafe {
        launch!(early gpu, "sample", "sample_advance", grid, THREADS, 0;
            at.codes.map(|codes| codes.first(positions)), lookup.taps, lookup.bias,
            at.before.map(|before| before.first(map)), at.after.map(|after| after.first(map)),
            at.rows.map(|rows| rows.first(2 * at.copies * map)),
            streams.seed.first(2), streams.indices.first(b),
            sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6])
    }
}
