//! Products of few rows on Hopper, by kernels of which every multiprocessor has one tile at most (`ops/product/kernel_few_sm90.cu`).

use candle_core::Result;

use crate::ops::cuda::{Gpu, TensorMap};

/// A kernel and its tile.
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
/// Blocks of a cluster, one under the other.
const PAIR: usize = 2;
/// k of a stage.
const STAGE: usize = 64;

impl Tile {
    /// Of rows × columns, with blocks that pair others.
    fn grid(&self, rows: usize, columns: usize) -> [usize; 2] {
        [
            columns.div_ceil(self.columns),
            rows.div_ceil(self.rows).next_multiple_of(PAIR),
        ]
    }

    fn shared(&self) -> usize {
        let stage = (self.rows + self.parts * self.columns) * STAGE * 2;
        self.stages * (stage + 3 * 8) + self.rows * self.columns * 2
    }

    fn run(
        &self,
        gpu: &Gpu,
        [rows, k, columns]: [usize; 3],
        [x, weight, bias, y]: [u64; 4],
    ) -> Result<()> {
        let [across, down] = self.grid(rows, columns);
        let x = TensorMap::swizzled(x, [rows, k], [self.rows, STAGE])?;
        let weight = TensorMap::swizzled(weight, [self.parts * columns, k], [self.columns, STAGE])?;
        let y = TensorMap::plain(y, [rows, columns], [16, self.columns])?;
        let (grid, shared) = ((across as u32, down as u32, 1), self.shared() as u32);
        launch!(early gpu, "product_few_sm90", self.kernel, grid, 2 * self.rows as u32 + 32, shared;
            x, weight, y, bias, k as i32, columns as i32)
    }
}

/// Of the tiles that every multiprocessor has at most one of, the one that takes the fewest operands.
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

/// y = x·weightᵀ (+ bias, where it is not 0), sizes [rows, input, output] of multiples of 8: whether a kernel serves them, and so launched it.
pub fn product_of_few(
    gpu: &Gpu,
    sizes: [usize; 3],
    x: u64,
    weight: u64,
    bias: u64,
    y: u64,
) -> Result<bool> {
    match fitting(&SUMS, gpu, sizes[0], sizes[2]) {
        Some(tile) => tile.run(gpu, sizes, [x, weight, bias, y]).map(|()| true),
        None => Ok(false),
    }
}

/// hidden = silu(gate)·up of y·weightᵀ, sizes [rows, C, F] of multiples of 8: as above.
pub fn swiglu_product_of_few(
    gpu: &Gpu,
    sizes: [usize; 3],
    y: u64,
    weight: u64,
    hidden: u64,
) -> Result<bool> {
    match fitting(&SWIGLU, gpu, sizes[0], sizes[2]) {
        Some(tile) => tile.run(gpu, sizes, [y, weight, 0, hidden]).map(|()| true),
        None => Ok(false),
    }
}
