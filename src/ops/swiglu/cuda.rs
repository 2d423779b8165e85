//! The GPU version on bf16 rows in preallocated buffers: alone (`kernel.cu`), and on sm_90 within
//! the matmuls beside it (`kernel_sm90.cu`).

use candle_core::Result;
use half::bf16;

use crate::ops::cuda::{Gpu, TensorMap, View, ViewMut, launch};
use crate::ops::product::cuda::{ROWS, Ring, STAGE, WARP_ROWS};

const THREADS: u32 = 256;

/// x [rows, 2F], gate first → h [rows, F]; sizes [rows, F], F a multiple of 8.
pub fn swiglu_forward(
    gpu: &Gpu,
    [rows, f]: [usize; 2],
    x: View<bf16>,
    h: ViewMut<bf16>,
) -> Result<()> {
    let grid = ((rows * f / 8).div_ceil(THREADS as usize) as u32, 1, 1);
    // SAFETY: the arguments are the kernel's, and views of the sizes that it walks over.
    unsafe {
        launch!(gpu, "swiglu", "swiglu_forward", grid, THREADS, 0;
            x.first(2 * rows * f), h.first(rows * f), rows as i64, f as i32)
    }
}

/// dx from dh; sizes as above.
pub fn swiglu_backward(
    gpu: &Gpu,
    [rows, f]: [usize; 2],
    x: View<bf16>,
    dh: View<bf16>,
    dx: ViewMut<bf16>,
) -> Result<()> {
    let grid = ((rows * f / 8).div_ceil(THREADS as usize) as u32, 1, 1);
    // SAFETY: the arguments are the kernel's, and views of the sizes that it walks over.
    unsafe {
        launch!(gpu, "swiglu", "swiglu_backward", grid, THREADS, 0;
            x.first(2 * rows * f), dh.first(rows * f), dx.first(2 * rows * f), rows as i64, f as i32)
    }
}

/// From this many rows on SwiGLU within the matmuls beside it is faster than after them: fewer make
/// too few tiles.
const PRODUCT_ROWS: usize = 1024;

/// Whether SwiGLU is fused into the matmuls: bit-identical.
pub fn swiglu_in_products(gpu: &Gpu, rows: usize) -> bool {
    gpu.is_hopper() && rows >= PRODUCT_ROWS
}

/// hidden = silu(gate)·up of y·weightᵀ, y [rows, C], weight [2F, C]; and gate | up, if they are to
/// be kept. Sizes [rows, C, F].
pub fn swiglu_product_forward(
    gpu: &Gpu,
    [rows, c, f]: [usize; 3],
    y: View<bf16>,
    weight: View<bf16>,
    gate_up: Option<ViewMut<bf16>>,
    hidden: ViewMut<bf16>,
) -> Result<()> {
    const COLUMNS: usize = 80; // of a tile
    const RING: Ring = Ring {
        columns: 2 * COLUMNS,
        stages: 5,
        a_warp: 2 * WARP_ROWS * COLUMNS * 2,
        cluster: 2,
    };
    let (y, weight) = (y.first(rows * c), weight.first(2 * f * c));
    let hidden = hidden.first(rows * f);
    let y = TensorMap::swizzled(y.address(), [rows, c], [ROWS, STAGE])?;
    let weight = TensorMap::swizzled(weight.address(), [2 * f, c], [COLUMNS / 2, STAGE])?;
    let hidden = TensorMap::plain(hidden.address(), [rows, f], [WARP_ROWS, COLUMNS])?;
    let (grid, shared) = (RING.grid(gpu, rows, f.div_ceil(COLUMNS)), RING.bytes());
    let Some(gate_up) = gate_up else {
        // SAFETY: the arguments are the kernel's; the maps' sizes are those of the views.
        return unsafe {
            launch!(gpu, "swiglu_sm90", "swiglu_product", grid, 384, shared;
                y, weight, hidden, rows as i32, c as i32, f as i32)
        };
    };
    let gate_up = gate_up.first(2 * rows * f);
    let gate_up = TensorMap::plain(gate_up.address(), [rows, 2, f], [WARP_ROWS, 1, COLUMNS])?;
    // SAFETY: as above.
    unsafe {
        launch!(gpu, "swiglu_sm90", "swiglu_product_kept", grid, 384, shared;
            y, weight, gate_up, hidden, rows as i32, c as i32, f as i32)
    }
}

/// The gradient of gate | up from dbranch [rows, C], of hidden·weightᵀ; weight [C, F]. Sizes
/// [rows, C, F].
pub fn swiglu_product_backward(
    gpu: &Gpu,
    [rows, c, f]: [usize; 3],
    dbranch: View<bf16>,
    weight: View<bf16>,
    gate_up: View<bf16>,
    dgate_up: ViewMut<bf16>,
) -> Result<()> {
    const COLUMNS: usize = 128;
    let (dbranch, weight) = (dbranch.first(rows * c), weight.first(c * f));
    let (gate_up, dgate_up) = (gate_up.first(2 * rows * f), dgate_up.first(2 * rows * f));
    let dbranch = TensorMap::swizzled(dbranch.address(), [rows, c], [ROWS, STAGE])?;
    let weight = TensorMap::swizzled(weight.address(), [c, f], [STAGE, 64])?;
    let [gate_up, dgate_up] = [gate_up.address(), dgate_up.address()]
        .map(|at| TensorMap::swizzled(at, [rows, 2, f], [WARP_ROWS, 1, 64]));
    // With more ks, moving the weights to the blocks is what takes time: then two share them.
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
    // SAFETY: the arguments are the kernel's; the maps' sizes are those of the views.
    unsafe {
        launch!(gpu, "swiglu_sm90", kernel, grid, 384, ring.bytes();
            dbranch, weight, gate_up?, dgate_up?, rows as i32, c as i32, f as i32)
    }
}
