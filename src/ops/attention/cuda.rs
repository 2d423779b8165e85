//! The GPU version for heads of width 64 on bf16 rows in preallocated buffers: which kernel serves
//! which length, on which GPU.

use candle_core::Result;
use half::bf16;

use crate::ops::cuda::{Gpu, View, ViewMut, launch};

const THREADS: u32 = 256;
/// Width of a head.
const HEAD: usize = 64;

/// Of rows [B·N, C], C = 64·heads.
#[derive(Debug, Clone, Copy)]
pub struct AttentionSizes {
    /// B
    pub batch: usize,
    /// N
    pub tokens: usize,
    pub heads: usize,
}

impl AttentionSizes {
    fn rows(&self) -> usize {
        self.batch * self.tokens
    }

    /// Elements of rows of C.
    fn map(&self) -> usize {
        self.rows() * self.heads * HEAD
    }

    /// Key blocks of the general backward kernel.
    fn key_blocks(&self) -> usize {
        self.tokens.div_ceil(256)
    }

    /// Elements of scratch that [`attention_backward`] takes: if there are several key blocks, dQ
    /// is added up from parts f32 [blocks, B·N, C].
    pub fn parts(&self) -> usize {
        match self.key_blocks() {
            1 => 0,
            blocks => blocks * self.map(),
        }
    }
}

/// cos, sin f32 [N, 32].
#[derive(Clone, Copy)]
pub struct Rotation<'a> {
    pub cos: View<'a, f32>,
    pub sin: View<'a, f32>,
}

impl Rotation<'_> {
    fn of(self, tokens: usize) -> Self {
        Self {
            cos: self.cos.first(tokens * HEAD / 2),
            sin: self.sin.first(tokens * HEAD / 2),
        }
    }
}

/// 1/√64, in the exponent's base where the kernel takes powers of two.
const SCALE: f32 = 0.125;

/// qkv [B·N, 3C] → out [B·N, C], and log Σ exp of the scores f32 [B, heads, N].
pub fn attention_forward(
    gpu: &Gpu,
    s: AttentionSizes,
    rope: Rotation,
    qkv: View<bf16>,
    out: ViewMut<bf16>,
    lse: ViewMut<f32>,
) -> Result<()> {
    let (n, heads, units) = (s.tokens as i32, s.heads as i32, (s.batch * s.heads) as i32);
    let scale = SCALE * std::f32::consts::LOG2_E;
    let rope = rope.of(s.tokens);
    let (qkv, out) = (qkv.first(3 * s.map()), out.first(s.map()));
    let lse = lse.first(s.rows() * s.heads);
    if gpu.is_hopper() && s.tokens <= 256 {
        let grid = (s.tokens.div_ceil(64) as u32, s.heads as u32, s.batch as u32);
        if grid.0 * grid.1 * grid.2 <= gpu.multiprocessors() {
            let shared = 9 * 64 * 128 + 2 * 4 * 64 * 4;
            // SAFETY: the arguments are the kernel's, and views of the sizes that it walks over.
            return unsafe {
                launch!(early gpu, "attention_few_sm90", "attention_forward_few", grid, 512, shared;
                    qkv, rope.cos, rope.sin, out, lse, n, heads, scale)
            };
        }
        let (kernel, heads_a_block) = match s.tokens {
            ..=64 => ("attention_forward_64", 4),
            65..=128 => ("attention_forward_128", 2),
            _ => ("attention_forward_256", 1),
        };
        let grid = (units as u32)
            .div_ceil(heads_a_block)
            .min(gpu.multiprocessors());
        // SAFETY: as above.
        return unsafe {
            launch!(gpu, "attention_sm90", kernel, (grid, 1, 1), 512, 7 * 256 * 128 + 16;
                qkv, rope.cos, rope.sin, out, lse, n, heads, units, scale)
        };
    }
    let grid = (
        s.tokens.div_ceil(128) as u32,
        s.heads as u32,
        s.batch as u32,
    );
    // SAFETY: as above.
    unsafe {
        launch!(gpu, "attention", "attention_forward", grid, 128, 0;
            qkv, rope.cos, rope.sin, out, lse, n, heads, scale)
    }
}

/// Inputs and outputs of [`attention_backward`]; as [`attention_forward`]'s.
pub struct AttentionGradient<'a> {
    pub qkv: View<'a, bf16>,
    pub out: View<'a, bf16>,
    pub dout: View<'a, bf16>,
    pub lse: View<'a, f32>,
    pub dqkv: ViewMut<'a, bf16>,
    /// Scratch of [`AttentionSizes::parts`].
    pub parts: ViewMut<'a, f32>,
}

/// The gradient of [`attention_forward`].
pub fn attention_backward(
    gpu: &Gpu,
    s: AttentionSizes,
    rope: Rotation,
    g: AttentionGradient,
) -> Result<()> {
    let (n, heads, units) = (s.tokens as i32, s.heads as i32, (s.batch * s.heads) as i32);
    let rope = rope.of(s.tokens);
    let (qkv, out) = (g.qkv.first(3 * s.map()), g.out.first(s.map()));
    let (dout, lse) = (g.dout.first(s.map()), g.lse.first(s.rows() * s.heads));
    let (mut dqkv, mut parts) = (g.dqkv.first(3 * s.map()), g.parts.first(s.parts()));
    if gpu.is_hopper() && (129..=256).contains(&s.tokens) {
        let grid = (units as u32).min(gpu.multiprocessors());
        let shared = 7 * 256 * 128 + 1024 + 64;
        let scale = SCALE * std::f32::consts::LOG2_E;
        // SAFETY: the arguments are the kernel's, and views of the sizes that it walks over.
        return unsafe {
            launch!(gpu, "attention_sm90", "attention_backward", (grid, 1, 1), 384, shared;
                qkv, rope.cos, rope.sin, out, dout, lse, dqkv, n, heads, units, scale)
        };
    }
    let (kernel, keys, warps, stages) = match s.tokens {
        ..=64 => ("attention_backward_64", 64, 4, 1),
        65..=128 => ("attention_backward_128", 128, 4, 2),
        _ => ("attention_backward_256", 256, 8, 2),
    };
    let grid = (
        s.tokens.div_ceil(keys as usize) as u32,
        s.heads as u32,
        s.batch as u32,
    );
    let shared = 3 * keys * 128 + stages * 2 * 64 * 128 + 512;
    // SAFETY: as above.
    unsafe {
        launch!(gpu, "attention", kernel, grid, 32 * warps, shared;
            qkv, rope.cos, rope.sin, out, dout, lse, dqkv.again(), parts.again(), n, heads,
            SCALE)?;
    }
    if grid.0 == 1 {
        return Ok(());
    }
    let sums = s.rows() * s.heads * 32;
    let grid_of_sums = (sums.div_ceil(THREADS as usize) as u32, 1, 1);
    // SAFETY: as above.
    unsafe {
        launch!(gpu, "attention", "attention_sum_dq", grid_of_sums, THREADS, 0;
            parts.read(), dqkv, grid.0 as i32, s.rows() as i64, heads)
    }
}
