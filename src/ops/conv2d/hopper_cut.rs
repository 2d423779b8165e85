//! How the kernels of Hopper's convolutions cut their work (kernel_sm90.cu), and which cut is expected to be fastest.

use crate::ops::cuda::Gpu;
use crate::ops::product::cuda::{STAGE, WARP_ROWS};

/// What a swapped tile's warpgroup writes at a time.
const SWAPPED_ROWS: usize = 64;
/// Blocks of a cluster, one under the other.
pub(super) const PAIR: usize = 2;

/// How a kernel cuts its work (`Cut` and `Swapped` in windows_sm90.cuh).
pub(super) struct Cut {
    pub name: &'static str,
    /// Positions and columns of a tile.
    pub rows: usize,
    pub columns: usize,
    stages: usize,
    /// Columns that a warp writes at a time.
    pub part: usize,
    swapped: bool,
    /// Taps of a line that are one copy of x.
    pub taps: usize,
    /// TFLOP/s where every multiprocessor has work: what a cut is chosen by.
    rate: f64,
}

impl Cut {
    /// Positions that a stage holds.
    fn loaded(&self) -> usize {
        if self.taps > 1 {
            self.rows + 16
        } else {
            self.rows
        }
    }

    /// Positions that are copied at a time.
    pub(super) fn copied(&self) -> usize {
        if self.taps > 1 {
            self.loaded() / 2
        } else {
            self.rows
        }
    }

    /// Bytes of shared memory: stages, two boxes for each of eight warps and their columns' sums, barriers.
    pub(super) fn shared(&self, transposed: bool, sums: bool) -> u32 {
        let columns = match transposed {
            true => self.columns.next_multiple_of(64),
            false => self.columns,
        };
        let boxes = 8 * 2 * WARP_ROWS * self.part * 2;
        let sums = if sums && !self.swapped {
            8 * self.columns * 8
        } else {
            0
        };
        let barriers = (2 * self.stages + 8 * 4) * 8;
        let stage = (self.loaded() + self.taps * columns) * STAGE * 2;
        (self.stages * stage + boxes + sums + barriers) as u32
    }

    /// A pair's tiles of a result.
    pub(super) fn tiles(&self, positions: usize, columns: usize) -> usize {
        positions.div_ceil(self.rows * PAIR) * columns.div_ceil(self.columns)
    }

    /// What the work takes, in units of its own.
    pub(super) fn cost(&self, gpu: &Gpu, positions: usize, columns: usize) -> f64 {
        let pairs = gpu.multiprocessors() as usize / PAIR;
        let rounds = self.tiles(positions, columns).div_ceil(pairs);
        (rounds * self.rows * self.columns) as f64 / self.rate
    }

    /// Rows of the boxes that are written.
    pub(super) fn box_rows(&self) -> usize {
        if self.swapped {
            SWAPPED_ROWS
        } else {
            WARP_ROWS
        }
    }

    /// The part of a line, or the lines, that a box of a map of so many lines and columns is: nothing where they do not fill it.
    pub(super) fn lines(&self, (height, width): (usize, usize)) -> Option<[usize; 2]> {
        let rows = self.box_rows();
        if width.is_multiple_of(rows) {
            return Some([1, rows]);
        }
        let lines = rows / width;
        (rows.is_multiple_of(width) && height.is_multiple_of(lines)).then_some([lines, width])
    }
}

/// The one that also writes by address, position by position.
pub(super) const ANYWHERE: &str = "192_128";

pub(super) static CUTS: [Cut; 6] = [
    cut("128_192", 128, 192, 4, 64, 650.),
    cut("192_128", 192, 128, 4, 64, 620.),
    cut("128_256", 128, 256, 4, 32, 600.),
    cut("256_96", 256, 96, 4, 32, 500.),
    Cut {
        swapped: true,
        ..cut("256_64", 256, 64, 4, 64, 400.)
    },
    Cut {
        swapped: true,
        taps: 3,
        ..cut("lines_64", 256, 64, 3, 64, 600.)
    },
];

const fn cut(
    name: &'static str,
    rows: usize,
    columns: usize,
    stages: usize,
    part: usize,
    rate: f64,
) -> Cut {
    Cut {
        name,
        rows,
        columns,
        stages,
        part,
        swapped: false,
        taps: 1,
        rate,
    }
}
