//! Attention's launches: which kernel serves which length, on which card.

use candle_core::Result;

use super::{Sizes, THREADS, blocks};
use crate::ops::cuda::Gpu;

/// cos, sin f32 [N, 32], 0 and 0 for no rotation.
#[derive(Debug, Clone, Copy)]
pub struct Rotation {
    pub cos: u64,
    pub sin: u64,
}

/// 1/√64, in the exponent's base where the kernel takes powers of two.
const SCALE: f32 = 0.125;

pub fn attention_forward(
    gpu: &Gpu,
    s: &Sizes,
    rope: Rotation,
    qkv: u64,
    out: u64,
    lse: u64,
) -> Result<()> {
    let (n, heads, units) = (s.tokens as i32, s.heads as i32, (s.batch * s.heads) as i32);
    let scale = SCALE * std::f32::consts::LOG2_E;
    if gpu.is_hopper() && s.tokens <= 256 {
        let grid = (blocks(s.tokens, 64), s.heads as u32, s.batch as u32);
        if grid.0 * grid.1 * grid.2 <= gpu.multiprocessors() {
            let shared = 9 * 64 * 128 + 2 * 4 * 64 * 4;
            return launch!(early gpu, "attention_few_sm90", "attention_forward_few", grid, 512, shared;
                qkv, rope.cos, rope.sin, out, lse, n, heads, scale);
        }
        let (kernel, heads_a_block) = match s.tokens {
            ..=64 => ("attention_forward_64", 4),
            65..=128 => ("attention_forward_128", 2),
            _ => ("attention_forward_256", 1),
        };
        let grid = (units as u32)
            .div_ceil(heads_a_block)
            .min(gpu.multiprocessors());
        return launch!(gpu, "attention_sm90", kernel, (grid, 1, 1), 512, 7 * 256 * 128 + 16;
            qkv, rope.cos, rope.sin, out, lse, n, heads, units, scale);
    }
    let grid = (blocks(s.tokens, 128), s.heads as u32, s.batch as u32);
    launch!(gpu, "attention", "attention_forward", grid, 128, 0;
        qkv, rope.cos, rope.sin, out, lse, n, heads, scale)
}

/// Key blocks of the general backward kernel: beyond one, dQ is added up from parts f32 [blocks, B·N, C].
pub fn attention_parts(tokens: usize) -> usize {
    tokens.div_ceil(256)
}

#[derive(Debug, Clone, Copy)]
pub struct AttentionGradient {
    pub qkv: u64,
    pub out: u64,
    pub dout: u64,
    pub lse: u64,
    pub dqkv: u64,
    /// Scratch where there are more than 256 tokens.
    pub parts: u64,
}

pub fn attention_backward(
    gpu: &Gpu,
    s: &Sizes,
    rope: Rotation,
    g: &AttentionGradient,
) -> Result<()> {
    let (n, heads, units) = (s.tokens as i32, s.heads as i32, (s.batch * s.heads) as i32);
    if gpu.is_hopper() && (129..=256).contains(&s.tokens) {
        let grid = (units as u32).min(gpu.multiprocessors());
        let shared = 7 * 256 * 128 + 1024 + 64;
        let scale = SCALE * std::f32::consts::LOG2_E;
        return launch!(gpu, "attention_sm90", "attention_backward", (grid, 1, 1), 384, shared;
            g.qkv, rope.cos, rope.sin, g.out, g.dout, g.lse, g.dqkv, n, heads, units, scale);
    }
    let (kernel, keys, warps, stages) = match s.tokens {
        ..=64 => ("attention_backward_64", 64, 4, 1),
        65..=128 => ("attention_backward_128", 128, 4, 2),
        _ => ("attention_backward_256", 256, 8, 2),
    };
    let grid = (blocks(s.tokens, keys), s.heads as u32, s.batch as u32);
    let shared = 3 * keys * 128 + stages * 2 * 64 * 128 + 512;
    launch!(gpu, "attention", kernel, grid, 32 * warps, shared;
        g.qkv, rope.cos, rope.sin, g.out, g.dout, g.lse, g.dqkv, g.parts, n, heads, SCALE)?;
    if grid.0 == 1 {
        return Ok(());
    }
    let sums = s.rows() * s.heads * 32;
    launch!(gpu, "attention", "attention_sum_dq", (blocks(sums, THREADS), 1, 1), THREADS, 0;
        g.parts, g.dqkv, grid.0 as i32, s.rows() as i64, heads)
}
