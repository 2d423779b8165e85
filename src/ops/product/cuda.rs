//! The GPU side: custom sm_90 matmuls of few rows (`kernel_few_sm90.cu`) and of many
//! (`kernel_sm90.cu`). All others are cuBLASLt's ([`Matmul`](super::cublaslt::Matmul)), which takes
//! those of many rows where they are faster.
//!
//! Sizes are multiples of 8.

use candle_core::Result;
use half::bf16;

use crate::ops::cuda::{Gpu, TensorMap, View, ViewMut, launch};

/// k of a stage of the kernels' rings.
pub const STAGE: usize = 64;
/// Blocks of a cluster, one under the other.
const PAIR: usize = 2;
/// Rows that a warp writes at a time.
pub const WARP_ROWS: usize = 16;

/// A kernel of few rows and its tile.
struct Tile {
    kernel: &'static str,
    rows: usize,
    /// Columns of the result, and how many rows of the weights each takes.
    columns: usize,
    parts: usize,
    stages: usize,
}

const fn tile(
    kernel: &'static str,
    rows: usize,
    columns: usize,
    parts: usize,
    stages: usize,
) -> Tile {
    Tile {
        kernel,
        rows,
        columns,
        parts,
        stages,
    }
}

static SUMS: [Tile; 5] = [
    tile("product_few_64_48", 64, 48, 1, 8),
    tile("product_few_64_64", 64, 64, 1, 8),
    tile("product_few_64_80", 64, 80, 1, 8),
    tile("product_few_128_80", 128, 80, 1, 6),
    tile("product_few_128_128", 128, 128, 1, 6),
];
static SWIGLU: [Tile; 3] = [
    tile("swiglu_few_128_64", 128, 64, 2, 6),
    tile("swiglu_few_128_96", 128, 96, 2, 4),
    tile("swiglu_few_128_128", 128, 128, 2, 4),
];

impl Tile {
    /// Of rows × columns, with blocks that pair others.
    fn grid(&self, rows: usize, columns: usize) -> [usize; 2] {
        [
            columns.div_ceil(self.columns),
            rows.div_ceil(self.rows).next_multiple_of(PAIR),
        ]
    }

    fn run(
        &self,
        gpu: &Gpu,
        [rows, k, columns]: [usize; 3],
        (x, weight): (View<bf16>, View<bf16>),
        bias: Option<View<bf16>>,
        y: ViewMut<bf16>,
    ) -> Result<()> {
        let (x, weight) = (x.first(rows * k), weight.first(self.parts * columns * k));
        let (bias, y) = (
            bias.map(|bias| bias.first(columns)),
            y.first(rows * columns),
        );
        let stage = (self.rows + self.parts * self.columns) * STAGE * 2;
        let shared = self.stages * (stage + 3 * 8) + self.rows * self.columns * 2;
        let x = TensorMap::swizzled(x.address(), [rows, k], [self.rows, STAGE])?;
        let of_weight = [self.parts * columns, k];
        let weight = TensorMap::swizzled(weight.address(), of_weight, [self.columns, STAGE])?;
        let y = TensorMap::plain(y.address(), [rows, columns], [WARP_ROWS, self.columns])?;
        let [across, down] = self.grid(rows, columns).map(|x| x as u32);
        let (grid, threads) = ((across, down, 1), 2 * self.rows as u32 + 32);
        // SAFETY: the arguments are the kernel's, and views of the sizes that it walks over.
        unsafe {
            launch!(early gpu, "product_few_sm90", self.kernel, grid, threads, shared as u32;
                x, weight, y, bias, k as i32, columns as i32)
        }
    }
}

/// The tile shape that fits in one wave and loads the least data.
fn fitting(
    tiles: &'static [Tile],
    gpu: &Gpu,
    rows: usize,
    columns: usize,
) -> Option<&'static Tile> {
    let fits = |t: &&Tile| {
        t.grid(rows, columns).iter().product::<usize>() <= gpu.multiprocessors() as usize
    };
    tiles
        .iter()
        .filter(|t| gpu.is_hopper() && fits(t))
        .min_by_key(|t| t.rows + t.parts * t.columns)
}

/// y = x·weightᵀ (+ bias), sizes [rows, input, output]: launches the matmul of few rows if there is
/// one for this shape; returns whether it did.
pub fn of_few(
    gpu: &Gpu,
    sizes: [usize; 3],
    x: View<bf16>,
    weight: View<bf16>,
    bias: Option<View<bf16>>,
    y: ViewMut<bf16>,
) -> Result<bool> {
    match fitting(&SUMS, gpu, sizes[0], sizes[2]) {
        Some(tile) => tile.run(gpu, sizes, (x, weight), bias, y).map(|()| true),
        None => Ok(false),
    }
}

/// hidden = silu(gate)·up of y·weightᵀ, sizes [rows, C, F], weight [2F, C]: as above.
pub fn swiglu_of_few(
    gpu: &Gpu,
    sizes: [usize; 3],
    y: View<bf16>,
    weight: View<bf16>,
    hidden: ViewMut<bf16>,
) -> Result<bool> {
    match fitting(&SWIGLU, gpu, sizes[0], sizes[2]) {
        Some(tile) => tile
            .run(gpu, sizes, (y, weight), None, hidden)
            .map(|()| true),
        None => Ok(false),
    }
}

/// Rows of a tile of the kernels of many rows (tiles_sm90.cuh).
pub const ROWS: usize = 128;
/// Of those in kernel_sm90.cu: columns of a tile, stages, and columns that a warp writes at a time.
const COLUMNS: usize = 192;
const STAGES: usize = 5;
const PART: usize = 48;

/// What a kernel of many rows is built with; from it its shared memory and its grid.
pub struct Ring {
    /// Columns of a tile, of SwiGLU those of gate and of up.
    pub columns: usize,
    pub stages: usize,
    /// Bytes beside the ring for each of eight warps.
    pub a_warp: usize,
    /// Blocks of a cluster.
    pub cluster: usize,
}

impl Ring {
    /// Bytes of shared memory.
    pub fn bytes(&self) -> u32 {
        let stage = (ROWS + self.columns) * STAGE * 2;
        (self.stages * (stage + 2 * 8) + 8 * (self.a_warp + 4 * 8)) as u32
    }

    /// Grid size for a persistent kernel over `rows` × `across` output tiles.
    pub fn grid(&self, gpu: &Gpu, rows: usize, across: usize) -> (u32, u32, u32) {
        let clusters = rows.div_ceil(self.cluster * ROWS) * across;
        let most = gpu.multiprocessors() as usize / self.cluster;
        ((self.cluster * clusters.min(most)) as u32, 1, 1)
    }
}

const RING: Ring = Ring {
    columns: COLUMNS,
    stages: STAGES,
    a_warp: 2 * WARP_ROWS * PART * 2,
    cluster: PAIR,
};

/// Whether the kernels of many rows are for this GPU, and give each block of it at least two tiles,
/// one of which is written while the other is multiplied: H200, four images of 256 tokens with
/// guidance, C 768, whole sampling: 11.1 ms with fewer tiles, 9.6 by cuBLASLt.
pub fn serves_many(gpu: &Gpu, rows: usize, columns: usize) -> bool {
    let tiles = rows.div_ceil(ROWS) * columns.div_ceil(COLUMNS);
    gpu.is_hopper() && tiles >= 2 * gpu.multiprocessors() as usize
}

/// What a branch's matmul is added to: x [rows, columns] and the gate, f32 [columns] for every
/// `tokens` rows, `stride` floats apart.
#[derive(Clone, Copy)]
pub struct Added<'a> {
    pub x: View<'a, bf16>,
    pub gate: View<'a, f32>,
    pub tokens: usize,
    pub stride: usize,
}

/// y = a·weightᵀ, weight [columns, k], or `transposed` a·weight, weight [k, columns]; sizes
/// [rows, k, columns].
pub fn of_many(
    gpu: &Gpu,
    sizes: [usize; 3],
    transposed: bool,
    a: View<bf16>,
    weight: View<bf16>,
    y: ViewMut<bf16>,
) -> Result<()> {
    let operands = operands(sizes, a, weight, y);
    // SAFETY: the views are of the sizes.
    unsafe { run_many(gpu, sizes, transposed, operands, None) }
}

/// y = x + gate·(a·weightᵀ), the branch rounded to bf16 as if it were written; sizes
/// [rows, k, columns].
pub fn added_to(
    gpu: &Gpu,
    sizes: [usize; 3],
    a: View<bf16>,
    weight: View<bf16>,
    to: Added,
    y: ViewMut<bf16>,
) -> Result<()> {
    let [rows, _, columns] = sizes;
    let gates = rows.div_ceil(to.tokens);
    let to = Added {
        x: to.x.first(rows * columns),
        gate: to.gate.first((gates - 1) * to.stride + columns),
        ..to
    };
    let operands = operands(sizes, a, weight, y);
    // SAFETY: the views are of the sizes.
    unsafe { run_many(gpu, sizes, false, operands, Some(to)) }
}

/// The addresses of views that hold all elements.
fn operands(
    [rows, k, columns]: [usize; 3],
    a: View<bf16>,
    weight: View<bf16>,
    y: ViewMut<bf16>,
) -> [u64; 3] {
    [
        a.first(rows * k).address(),
        weight.first(k * columns).address(),
        y.first(rows * columns).address(),
    ]
}

/// # Safety
/// The addresses of a, weight and y reach over the sizes, as do the views of `added`.
pub(super) unsafe fn run_many(
    gpu: &Gpu,
    [rows, k, columns]: [usize; 3],
    transposed: bool,
    [a, weight, y]: [u64; 3],
    added: Option<Added>,
) -> Result<()> {
    let name = match (transposed, added) {
        (true, _) => "product_many_transposed",
        (false, None) => "product_many",
        (false, Some(_)) => "product_many_added",
    };
    let kernel = gpu.kernel("product_sm90", name, RING.bytes())?;
    let mut launch = gpu.launch(&kernel);
    let plain = |at| TensorMap::plain(at, [rows, columns], [WARP_ROWS, PART]);
    launch.value(TensorMap::swizzled(a, [rows, k], [ROWS, STAGE])?);
    launch.value(match transposed {
        true => TensorMap::swizzled(weight, [k, columns], [STAGE / PAIR, 64])?,
        false => TensorMap::swizzled(weight, [columns, k], [COLUMNS / PAIR, STAGE])?,
    });
    launch.value(plain(y)?);
    for size in [rows, k, columns] {
        launch.value(size as i32);
    }
    if let Some(to) = added {
        launch.value(plain(to.x.address())?);
        launch.value(to.gate);
        launch.value(to.tokens as i32);
        launch.value(to.stride as i32);
    }
    let grid = RING.grid(gpu, rows, columns.div_ceil(COLUMNS));
    // SAFETY: the arguments are the kernel's; the rest is the caller's promise.
    unsafe { launch.run(grid, 384, RING.bytes()) }
}
