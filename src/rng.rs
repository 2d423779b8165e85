//! Counter-based random numbers: Philox 4×32-10 (Salmon et al., SC 2011).
//!
//! The key is the run's seed; the counter is (element / 4, t + 2¹⁶·purpose, index low, index high).
//! A number therefore depends on its purpose, and never on batch size, device, workers or where a
//! run was resumed. Element i comes from word i mod 4 of block i / 4; normals i and i + 1 (i even)
//! are a Box–Muller pair. Noise maps are numbered in memory order [h,w,d], Gumbel maps in [N,K].
//! The bits are equal on every machine and instruction set; `transform.rs` says how.

mod draws;
mod gumbel;
mod philox;
#[cfg(test)]
mod tests;
mod transform;

use candle_core::{Device, Result, Tensor};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::ops::is_serial;
pub use draws::StreamRng;
pub use gumbel::largest_with_gumbel;
use philox::LANES;

/// What a stream of numbers is used for. It is part of the counter, so the values must never
/// change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Purpose {
    /// ε_t of the recurrent quantization and of sampling; index: the example's or sample's number.
    Noise = 0,
    /// Uniforms of the Gumbel noise over logits; index: the sample's number.
    Gumbel = 1,
    /// The step t of a training example; index: the example's number.
    Timestep = 2,
    /// Whether an example's label is dropped; index: the example's number.
    LabelDrop = 3,
    /// Crop and flip; index: the example's number.
    Augment = 4,
    /// The order of an epoch; index: the epoch.
    Shuffle = 5,
    /// Which noisy vector replaces a dead code; index: the training step.
    Restart = 6,
    /// Initial values; index: a hash of the parameter's name.
    Init = 7,
    /// The demo's drawings; index: the drawing's number.
    Drawing = 8,
    /// The images in a random subset of a metric; index: the subset.
    Subset = 9,
    /// Which codes of a training example give way to others; index: the example's number.
    Perturb = 10,
    /// Which elements of a generator's branch are dropped; index: the example's number, t: the
    /// block.
    Dropout = 11,
}

/// One stream of numbers, with fixed seed, purpose, index and t.
#[derive(Debug, Clone, Copy)]
pub struct Stream {
    key: [u32; 2],
    counter: [u32; 3],
}

impl Stream {
    /// The stream of `index` and `t`; t is below 2¹⁶.
    pub fn new(seed: u64, purpose: Purpose, index: u64, t: u32) -> Self {
        debug_assert!(t < 1 << 16);
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
        philox::block([block, a, b, c], self.key)
    }

    /// Uniform in (0,1), excluding both ends: u = ((x >> 9) + ½)·2⁻²³.
    pub fn fill_uniform(&self, out: &mut [f32]) {
        self.fill(Kind::Uniform, 0, out);
    }

    /// Standard normal by Box–Muller, two numbers from two words.
    pub fn fill_normal(&self, out: &mut [f32]) {
        self.fill(Kind::Normal, 0, out);
    }

    /// The stream's words one after the other.
    pub fn draws(&self) -> StreamRng {
        StreamRng::new(*self)
    }

    fn fill(&self, kind: Kind, first_block: u32, out: &mut [f32]) {
        Arch::new().dispatch(Fill {
            stream: self,
            kind,
            first_block,
            out,
        });
    }
}

/// Numbers from `first_block` on. A type of its own, because a closure's body would not be inlined
/// into the dispatch and so would not be compiled for the instruction set.
struct Fill<'a> {
    stream: &'a Stream,
    kind: Kind,
    first_block: u32,
    out: &'a mut [f32],
}

impl WithSimd for Fill<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Stream { key, counter } = *self.stream;
        let mut block = self.first_block;
        for group in self.out.chunks_mut(4 * LANES) {
            let words = philox::blocks(block, counter, key);
            let four = match self.kind {
                Kind::Uniform => transform::uniforms(words),
                Kind::Normal => transform::normals(words),
            };
            if let Ok(group) = <&mut [f32; 4 * LANES]>::try_from(&mut *group) {
                for l in 0..LANES {
                    for w in 0..4 {
                        group[4 * l + w] = four[w][l];
                    }
                }
            } else {
                for (i, x) in group.iter_mut().enumerate() {
                    *x = four[i % 4][i / 4];
                }
            }
            block = block.wrapping_add(LANES as u32);
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Uniform,
    Normal,
}

/// Standard normal values for every index: [B, shape...], row b from stream (seed, purpose,
/// indices[b], t).
pub fn normal(
    seed: u64,
    purpose: Purpose,
    indices: &[u64],
    t: u32,
    shape: &[usize],
    device: &Device,
) -> Result<Tensor> {
    let stream = |index| Stream::new(seed, purpose, index, t);
    tensor(Kind::Normal, stream, indices, shape, device)
}

/// Uniform values in (0,1) for every index: [B, shape...], row b from stream (seed, purpose,
/// indices[b], t).
pub fn uniform(
    seed: u64,
    purpose: Purpose,
    indices: &[u64],
    t: u32,
    shape: &[usize],
    device: &Device,
) -> Result<Tensor> {
    let stream = |index| Stream::new(seed, purpose, index, t);
    tensor(Kind::Uniform, stream, indices, shape, device)
}

fn tensor(
    kind: Kind,
    stream: impl Fn(u64) -> Stream + Sync,
    indices: &[u64],
    shape: &[usize],
    device: &Device,
) -> Result<Tensor> {
    /// Elements per parallel task; a multiple of four, so that every task begins with a block.
    const PIECE: usize = 1 << 14;
    let n: usize = shape.iter().product();
    let mut out = vec![0f32; indices.len() * n];
    if is_serial() {
        let rows = out.chunks_mut(n.max(1)).zip(indices);
        rows.for_each(|(row, &index)| stream(index).fill(kind, 0, row));
    } else {
        let rows = out.par_chunks_mut(n.max(1)).zip(indices);
        rows.for_each(|(row, &index)| {
            let stream = stream(index);
            row.par_chunks_mut(PIECE)
                .enumerate()
                .for_each(|(i, piece)| stream.fill(kind, (i * PIECE / 4) as u32, piece));
        });
    }
    let full: Vec<usize> = std::iter::once(indices.len())
        .chain(shape.iter().copied())
        .collect();
    Tensor::from_vec(out, full, device)
}
