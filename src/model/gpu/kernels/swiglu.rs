//! SwiGLU's launches: alone, and on Hopper within the products beside it.

use candle_core::Result;

use super::{Sizes, THREADS, blocks};
use crate::ops::cuda::{Gpu, TensorMap};
use crate::ops::product::cuda::{ROWS, Ring, STAGE, WARP_ROWS};

pub fn swiglu_forward(gpu: &Gpu, s: &Sizes, x: u64, h: u64) -> Result<()> {
    let grid = (blocks(s.rows() * s.hidden / 8, THREADS), 1, 1);
    launch!(gpu, "swiglu", "swiglu_forward", grid, THREADS, 0; x, h, s.rows() as i64, s.hidden as i32)
}

/// dx from dh.
pub fn swiglu_backward(gpu: &Gpu, s: &Sizes, x: u64, dh: u64, dx: u64) -> Result<()> {
    let grid = (blocks(s.rows() * s.hidden / 8, THREADS), 1, 1);
    launch!(gpu, "swiglu", "swiglu_backward", grid, THREADS, 0;
        x, dh, dx, s.rows() as i64, s.hidden as i32)
}

/// Rows from which on SwiGLU within the products beside it is faster than after them: fewer make too few tiles.
const PRODUCT_ROWS: usize = 1024;

/// Whether SwiGLU happens within the products: same bits.
pub fn swiglu_in_products(gpu: &Gpu, s: &Sizes) -> bool {
    gpu.is_hopper() && s.rows() >= PRODUCT_ROWS
}

/// hidden = silu(gate)·up of y·weightᵀ, weight [2F, C]; and gate | up, where it is not 0.
pub fn swiglu_product_forward(
    gpu: &Gpu,
    s: &Sizes,
    y: u64,
    weight: u64,
    gate_up: u64,
    hidden: u64,
) -> Result<()> {
    const COLUMNS: usize = 80; // of a tile
    const RING: Ring = Ring {
        columns: 2 * COLUMNS,
        stages: 5,
        a_warp: 2 * WARP_ROWS * COLUMNS * 2,
        cluster: 2,
    };
    let (rows, c, f) = (s.rows(), s.width, s.hidden);
    let y = TensorMap::swizzled(y, [rows, c], [ROWS, STAGE])?;
    let weight = TensorMap::swizzled(weight, [2 * f, c], [COLUMNS / 2, STAGE])?;
    let hidden = TensorMap::plain(hidden, [rows, f], [WARP_ROWS, COLUMNS])?;
    let (grid, shared) = (RING.grid(gpu, rows, f.div_ceil(COLUMNS)), RING.bytes());
    if gate_up == 0 {
        return launch!(gpu, "swiglu_sm90", "swiglu_product", grid, 384, shared;
            y, weight, hidden, rows as i32, c as i32, f as i32);
    }
    let gate_up = TensorMap::plain(gate_up, [rows, 2, f], [WARP_ROWS, 1, COLUMNS])?;
    launch!(gpu, "swiglu_sm90", "swiglu_product_kept", grid, 384, shared;
        y, weight, gate_up, hidden, rows as i32, c as i32, f as i32)
}

/// The gradient of gate | up from dbranch, of hidden·weightᵀ; weight [C, F].
pub fn swiglu_product_backward(
    gpu: &Gpu,
    s: &Sizes,
    dbranch: u64,
    weight: u64,
    gate_up: u64,
    dgate_up: u64,
) -> Result<()> {
    const COLUMNS: usize = 128;
    let (rows, c, f) = (s.rows(), s.width, s.hidden);
    let dbranch = TensorMap::swizzled(dbranch, [rows, c], [ROWS, STAGE])?;
    let weight = TensorMap::swizzled(weight, [c, f], [STAGE, 64])?;
    let [gate_up, dgate_up] =
        [gate_up, dgate_up].map(|at| TensorMap::swizzled(at, [rows, 2, f], [WARP_ROWS, 1, 64]));
    // With more ks the weights' way to the blocks is what takes time: then two share it.
    let (kernel, cluster, slots) = match c {
        ..=768 => ("swiglu_product_backward", 1, 2),
        _ => ("swiglu_product_backward_pairs", 2, 3),
    };
    let ring = Ring {
        columns: COLUMNS,
        stages: 4,
        a_warp: slots * WARP_ROWS * 2 * 64 * 2,
        cluster,
    };
    let grid = ring.grid(gpu, rows, f.div_ceil(COLUMNS));
    launch!(gpu, "swiglu_sm90", kernel, grid, 384, ring.bytes();
        dbranch, weight, gate_up?, dgate_up?, rows as i32, c as i32, f as i32)
}
