//! Counter-based random numbers: Philox 4×32-10 (Salmon et al., SC 2011).
//!
//! The key is the run's seed; the counter is (element / 4, t + 2¹⁶·purpose, index low, index high). So a number
//! depends on what it is for and never on batch size, device, workers or the point of resumption.
//! Noise maps are numbered in memory order [h,w,d]; Gumbel maps [N,K].

use candle_core::{Device, Result, Tensor};

/// What a stream of numbers is for; part of the counter, so the values are fixed for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Purpose {
    /// ε_t of the recurrent quantization and of sampling; index: the example's or sample's number.
    Noise = 0,
    /// Uniforms of the Gumbel noise over logits; index: the sample's number.
    Gumbel = 1,
    /// The step t of a training example; index: the example's running number.
    Timestep = 2,
    /// Whether an example's label is dropped; index: the example's running number.
    LabelDrop = 3,
    /// Crop and flip; index: the example's running number.
    Augment = 4,
    /// The order of an epoch; index: the epoch.
    Shuffle = 5,
    /// Which noisy vector replaces a dead code; index: the training step.
    Restart = 6,
    /// Initial values; index: a hash of the parameter's name.
    Init = 7,
    /// The demo's drawings; index: the drawing's number.
    Drawing = 8,
}

/// One stream of numbers: seed, purpose, index and t fixed.
#[derive(Debug, Clone, Copy)]
pub struct Stream {
    key: [u32; 2],
    counter: [u32; 3],
}

impl Stream {
    pub fn new(seed: u64, purpose: Purpose, index: u64, t: u32) -> Self {
        Self {
            key: [seed as u32, (seed >> 32) as u32],
            counter: [
                t + ((purpose as u32) << 16),
                index as u32,
                (index >> 32) as u32,
            ],
        }
    }

    /// The four words of one block: elements 4·block .. 4·block+3.
    pub fn words(&self, block: u32) -> [u32; 4] {
        let [a, b, c] = self.counter;
        philox([block, a, b, c], self.key)
    }

    /// Uniform in (0,1), never its ends: u = ((x >> 9) + ½)·2⁻²³.
    pub fn fill_uniform(&self, out: &mut [f32]) {
        for (block, four) in out.chunks_mut(4).enumerate() {
            let words = self.words(block as u32);
            for (o, w) in four.iter_mut().zip(words) {
                *o = unit(w);
            }
        }
    }

    /// Standard normal by Box–Muller, two from two words.
    pub fn fill_normal(&self, out: &mut [f32]) {
        for (block, four) in out.chunks_mut(4).enumerate() {
            let w = self.words(block as u32);
            let (a, b) = box_muller(unit(w[0]), unit(w[1]));
            let (c, d) = box_muller(unit(w[2]), unit(w[3]));
            for (o, x) in four.iter_mut().zip([a, b, c, d]) {
                *o = x;
            }
        }
    }
}

fn unit(word: u32) -> f32 {
    ((word >> 9) as f32 + 0.5) * (1.0 / 8_388_608.0)
}

fn box_muller(u: f32, v: f32) -> (f32, f32) {
    let r = (-2.0 * u.ln()).sqrt();
    let a = std::f32::consts::TAU * v;
    (r * a.cos(), r * a.sin())
}

fn philox(mut c: [u32; 4], mut k: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let p0 = 0xD251_1F53_u64 * u64::from(c[0]);
        let p1 = 0xCD9E_8D57_u64 * u64::from(c[2]);
        c = [
            (p1 >> 32) as u32 ^ c[1] ^ k[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ c[3] ^ k[1],
            p0 as u32,
        ];
        k = [
            k[0].wrapping_add(0x9E37_79B9),
            k[1].wrapping_add(0xBB67_AE85),
        ];
    }
    c
}

/// Standard normal values for every index: [B, shape...], row b from stream (seed, purpose, indices[b], t).
pub fn normal(
    seed: u64,
    purpose: Purpose,
    indices: &[u64],
    t: u32,
    shape: &[usize],
    device: &Device,
) -> Result<Tensor> {
    fill(indices, shape, device, |index, row| {
        Stream::new(seed, purpose, index, t).fill_normal(row)
    })
}

/// Uniform values in (0,1) for every index: [B, shape...], row b from stream (seed, purpose, indices[b], t).
pub fn uniform(
    seed: u64,
    purpose: Purpose,
    indices: &[u64],
    t: u32,
    shape: &[usize],
    device: &Device,
) -> Result<Tensor> {
    fill(indices, shape, device, |index, row| {
        Stream::new(seed, purpose, index, t).fill_uniform(row)
    })
}

fn fill(
    indices: &[u64],
    shape: &[usize],
    device: &Device,
    f: impl Fn(u64, &mut [f32]) + Sync,
) -> Result<Tensor> {
    use rayon::prelude::*;
    let n: usize = shape.iter().product();
    let mut out = vec![0f32; indices.len() * n];
    out.par_chunks_mut(n.max(1))
        .zip(indices)
        .for_each(|(row, &index)| f(index, row));
    let full: Vec<usize> = std::iter::once(indices.len())
        .chain(shape.iter().copied())
        .collect();
    Tensor::from_vec(out, full, device)
}
