//! How the kernels of Hopper's convolutions cut their work (kernel_sm90.cu), and which cut is
//! expected to be fastest.

use crate::ops::product::cuda::{STAGE, WARP_ROWS};

/// What a swapped tile's warpgroup writes at a time.
const SWAPPED_ROWS: usize = 64;
/// Blocks of a cluster, one under the other.
pub(super) const PAIR: usize = 2;

/// How a kernel cuts its work (`Cut` and `Swapped` in windows_sm90.cuh), and what it serves.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    /// The kernels' file, that of those for f16, and how their names begin.
    pub file: &'static str,
    pub file_f16: &'static str,
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
    /// Only for channels of x whose last block of 64 is at most 32.
    pub half: bool,
    /// Blocks of a cluster that share a tile's sums (split_sm90.cuh); 0: a pair of blocks has a
    /// tile each.
    pub split: usize,
    pub kernels: Kernels,
    /// TFLOP/s where every multiprocessor has work, and what a launch takes beside, in
    /// microseconds: what a cut is chosen by.
    rate: f64,
    start: f64,
}

/// Which kernels a cut has (`To` in windows_sm90.cuh): each also transposed.
#[derive(Clone, Copy)]
pub(super) struct Kernels {
    pub rows: bool,
    pub lines: bool,
    pub places: bool,
    /// Sums with `rows`, and with `lines`.
    pub sums: [bool; 2],
}

impl Cut {
    /// Positions that a stage holds.
    fn loaded(&self) -> usize {
        match (self.taps, self.swapped) {
            (1, _) => self.rows,
            (_, true) => self.rows + 16,
            (_, false) => self.rows + 8,
        }
    }

    /// Positions that are copied at a time.
    pub fn copied(&self) -> usize {
        match self.loaded() {
            once @ ..=256 => once,
            twice => twice / 2,
        }
    }

    /// Whether positions are counted with what lies between two lines: where a tile of several taps
    /// is not part of one.
    pub fn pads(&self, width: usize) -> bool {
        self.taps > 1 && !(self.kernels.rows && width.is_multiple_of(self.rows))
    }

    /// The weights' boxes of outputs and inputs.
    pub fn weights(&self, transposed: bool) -> [usize; 2] {
        match (self.split > 0, transposed) {
            (true, _) => [64, 64],
            (false, true) => [STAGE / PAIR, 64],
            (false, false) => [self.columns / PAIR, STAGE],
        }
    }

    /// Threads of a block: a warp that copies beside two warpgroups, or a whole one.
    pub fn threads(&self) -> u32 {
        if self.split > 0 { 288 } else { 384 }
    }

    /// Bytes of shared memory: stages, two boxes for each of eight warps and their columns' sums,
    /// barriers.
    pub fn shared(&self, transposed: bool, sums: bool) -> u32 {
        let columns = match transposed {
            true => self.columns.next_multiple_of(64),
            false => self.columns,
        };
        let boxes = match self.split {
            0 => 8 * 2 * WARP_ROWS * self.part * 2,
            _ => 0, // what a block's part is written to were stages
        };
        let sums = if sums && !self.swapped {
            8 * self.columns * 8
        } else {
            0
        };
        let fewer = usize::from(transposed && self.taps > 1 && !self.columns.is_multiple_of(64));
        let stages = self.stages - fewer;
        let barriers = (2 * stages + 8 * 4) * 8;
        let stage = (self.loaded() + self.taps * columns) * STAGE * 2;
        (stages * stage + boxes + sums + barriers) as u32
    }

    /// Blocks that a tile, or a pair's two, take.
    pub fn cluster(&self) -> usize {
        if self.split > 0 { self.split } else { PAIR }
    }

    /// Clusters' tiles of a result.
    pub fn tiles(&self, positions: usize, columns: usize) -> usize {
        let rows = if self.split > 0 {
            self.rows
        } else {
            self.rows * PAIR
        };
        positions.div_ceil(rows) * columns.div_ceil(self.columns)
    }

    /// Microseconds that so many tiles are expected to take, on average sums of `depth` terms.
    pub fn time(&self, multiprocessors: usize, tiles: usize, depth: f64) -> f64 {
        let rounds = tiles.div_ceil((multiprocessors / self.cluster()).max(1)) as f64;
        let flop = 2.0 * (self.rows * self.columns) as f64 * depth / self.split.max(1) as f64;
        self.start + rounds * flop / (self.rate * 1e6 / 132.0)
    }

    /// Rows of the boxes that are written.
    pub fn box_rows(&self) -> usize {
        if self.swapped {
            SWAPPED_ROWS
        } else {
            WARP_ROWS
        }
    }

    /// The part of a line, or the lines, that a box of a map of so many lines and columns is:
    /// nothing where they do not fill it.
    pub fn lines(&self, (height, width): (usize, usize)) -> Option<[usize; 2]> {
        let rows = self.box_rows();
        if width.is_multiple_of(rows) {
            return Some([1, rows]);
        }
        let lines = rows / width;
        (rows.is_multiple_of(width) && height.is_multiple_of(lines)).then_some([lines, width])
    }
}

const ROWS: Kernels = Kernels {
    rows: true,
    lines: false,
    places: false,
    sums: [true, false],
};
const PLACES: Kernels = Kernels {
    rows: false,
    lines: false,
    places: true,
    sums: [false, false],
};

const fn cut(
    name: &'static str,
    (rows, columns): (usize, usize),
    stages: usize,
    part: usize,
    kernels: Kernels,
    rate: f64,
) -> Cut {
    Cut {
        file: "conv2d_sm90",
        file_f16: "conv2d_f16_sm90",
        name,
        rows,
        columns,
        stages,
        part,
        swapped: false,
        taps: 1,
        half: false,
        split: 0,
        kernels,
        rate,
        start: 5.0,
    }
}

/// Those of kernel_narrow_sm90.cu.
const fn narrow(cut: Cut) -> Cut {
    Cut {
        file: "conv2d_narrow_sm90",
        file_f16: "conv2d_f16_narrow_sm90",
        ..cut
    }
}

const fn by_lines(cut: Cut, half: bool) -> Cut {
    Cut {
        taps: 3,
        half,
        ..narrow(cut)
    }
}

const fn swapped(cut: Cut) -> Cut {
    Cut {
        swapped: true,
        ..cut
    }
}

/// Those of kernel_split_sm90.cu, which write by address.
const fn split(name: &'static str, split: usize, start: f64) -> Cut {
    Cut {
        file: "conv2d_split_sm90",
        file_f16: "conv2d_f16_split_sm90",
        split,
        start,
        ..cut(name, (128, 64), 8, 64, PLACES, 300.)
    }
}

pub(super) static CUTS: [Cut; 14] = [
    cut("128_192", (128, 192), 4, 64, ROWS, 760.),
    cut("128_256", (128, 256), 4, 32, ROWS, 730.),
    cut("128_128", (128, 128), 5, 64, ROWS, 680.),
    Cut {
        kernels: Kernels {
            lines: true,
            places: true,
            sums: [true, true],
            ..ROWS
        },
        ..cut("192_128", (192, 128), 4, 64, ROWS, 740.)
    },
    narrow(swapped(Cut {
        kernels: Kernels {
            lines: true,
            sums: [true, true],
            ..ROWS
        },
        ..cut("256_64", (256, 64), 4, 64, ROWS, 480.)
    })),
    narrow(Cut {
        kernels: Kernels {
            lines: true,
            sums: [false, false],
            ..ROWS
        },
        ..cut("256_96", (256, 96), 4, 32, ROWS, 600.)
    }),
    by_lines(
        swapped(Cut {
            kernels: Kernels {
                places: true,
                ..ROWS
            },
            ..cut("lines_64", (256, 64), 3, 64, ROWS, 750.)
        }),
        false,
    ),
    by_lines(
        swapped(cut("lines_64_half", (256, 64), 3, 64, PLACES, 750.)),
        true,
    ),
    by_lines(cut("lines_96", (192, 96), 3, 32, PLACES, 650.), false),
    by_lines(cut("lines_96_half", (192, 96), 3, 32, PLACES, 650.), true),
    split("split_1", 1, 4.0),
    split("split_2", 2, 5.0),
    split("split_4", 4, 5.0),
    split("split_8", 8, 5.0),
];
