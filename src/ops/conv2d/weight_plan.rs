//! How Hopper's weight gradient of a convolution (kernel_weight_sm90.cu) is cut into tiles, boxes
//! and parts: arithmetic that the shape alone fixes.

use super::op::Conv2d;

/// Parts of the work: blocks of an H100 or H200, on any card.
const WORKERS: usize = 132;
/// Shared memory of a block's ring, and behind it: a sanitizer takes a product of views, which
/// overlap, to read on as if they did not.
const RING: usize = 231_424 - BEHIND;
const BEHIND: usize = 8192;
const MOST_STAGES: usize = 8;
/// Positions of a stage, channels of a box, and bytes of these channels.
const STAGE: usize = 64;
const BOX: usize = 64;
const ROW: usize = 128;
/// Bytes a clock that arrive from L2 at a multiprocessor, how much longer every second pixel takes
/// than every one, multiply-adds a clock, and clocks of a stage besides: by which the measured
/// times of an H200 are in order.
const ARRIVING: f64 = 32.0;
const STRIDED: f64 = 1.5;
const PRODUCTS_A_CLOCK: f64 = 2048.0;
const A_STAGE: f64 = 130.0;

/// A kernel: its warpgroups, one under the other or side by side, and the products of each, of 64
/// rows and `columns`.
#[derive(Debug, PartialEq)]
pub(super) struct Kernel {
    pub name: &'static str,
    warpgroups: usize,
    side: bool,
    columns: usize,
    products: usize,
}

const fn kernel(
    name: &'static str,
    warpgroups: usize,
    side: bool,
    columns: usize,
    products: usize,
) -> Kernel {
    Kernel {
        name,
        warpgroups,
        side,
        columns,
        products,
    }
}

static KERNELS: [Kernel; 7] = [
    kernel("weight_128_192_192", 2, false, 192, 2),
    kernel("weight_128_128_128_128", 2, false, 128, 3),
    kernel("weight_128_96_96_96", 2, false, 96, 3),
    kernel("weight_128_128", 2, false, 128, 1),
    kernel("weight_128_256", 2, false, 256, 1),
    kernel("weight_192_192", 3, false, 192, 1),
    kernel("weight_64_192_192_192", 3, true, 192, 1),
];

impl Kernel {
    pub fn threads(&self) -> u32 {
        (128 * (self.warpgroups + 1)) as u32
    }

    /// Products over the columns of a tile.
    fn across(&self) -> usize {
        self.products * if self.side { self.warpgroups } else { 1 }
    }

    /// O and columns of a tile.
    pub fn tile(&self) -> [usize; 2] {
        let rows = if self.side { 1 } else { self.warpgroups };
        [64 * rows, self.columns * self.across()]
    }
}

/// What lies in a box of x, and what a product reads of it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Boxes {
    /// One tap: a product reads several boxes.
    OneTap,
    /// The taps of a product side by side.
    Views,
    /// Three taps, and each product reads 96 channels of one, from two boxes.
    Halves,
}

/// The numbers of the kernels' argument, as in kernel_weight_sm90.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    height: i32,
    width: i32,
    stride: i32,
    top: i32,
    left: i32,
    steps: i32,
    workers: i32,
    share: i32,
    rest: i32,
    across: i32,
    boxes: i32,
    chunks: i32,
    a_row: i32,
    taps: i32,
    bytes: i32,
    product: i32,
    next: i32,
    box_columns: i32,
    view_columns: i32,
    x_bytes: i32,
    stages: i32,
    k: [i32; 4],
    outputs: i32,
    inputs: i32,
    rows: i32,
    columns: i32,
    /// 0: written over what is there.
    accumulate: i32,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub kernel: &'static Kernel,
    pub cut: Cut,
    /// Blocks of the product.
    pub workers: usize,
    tiles: usize,
    /// Positions that lines have more than dy has, and pixels of a box of x.
    pub more: usize,
    pub pixels: usize,
    /// Pixels of x that its map has beyond the last one that a position begins at.
    views: usize,
    pub shared: u32,
    clocks: f64,
}

impl Plan {
    /// The one of fewest clocks, counted from products and bytes.
    pub fn new(op: &Conv2d, maps: usize) -> Option<Self> {
        let all = KERNELS.iter().flat_map(|kernel| {
            [Boxes::Views, Boxes::OneTap, Boxes::Halves]
                .into_iter()
                .filter_map(|boxes| Self::of(op, maps, kernel, boxes, WORKERS))
        });
        all.reduce(|best, plan| {
            if plan.clocks < best.clocks {
                plan
            } else {
                best
            }
        })
    }

    fn of(
        op: &Conv2d,
        maps: usize,
        kernel: &'static Kernel,
        boxes: Boxes,
        most_workers: usize,
    ) -> Option<Self> {
        let (w, (inputs, outputs)) = (&op.window, op.channels);
        let ((rows, columns), (height, width), stride) = (w.kernel, w.output, w.stride);
        let halves = boxes == Boxes::Halves;
        if halves != (kernel.columns == 96) || (halves && !(BOX + 1..=96).contains(&inputs)) {
            return None;
        }
        if (columns == 1 || stride > 1) && boxes != Boxes::OneTap {
            return None;
        }
        let [tile_rows, tile_columns] = kernel.tile();
        let (taps, of_tile) = match boxes {
            Boxes::OneTap => (1, tile_columns / BOX),
            Boxes::Views => (kernel.columns / BOX, kernel.across()),
            Boxes::Halves => (3, 2),
        };
        // Lines of 16, 32 or a multiple of 64 positions need none of the pixels between them as
        // positions.
        let fits = width.is_multiple_of(STAGE) || width == 16 || width == 32;
        let (views, more) = (taps - 1, if fits { 0 } else { taps - 1 });
        let lines = if fits && width < STAGE {
            STAGE / width
        } else {
            1
        };
        let pixels = match lines {
            1 => STAGE + views,
            _ => lines * (width + views),
        };
        let of_k = |j: usize| match lines {
            1 => 16 * j,
            _ => 16 * j / width * (width + views) + 16 * j % width,
        };
        let a_row = columns.div_ceil(taps);
        let chunks = inputs.div_ceil(BOX);
        let positions = maps * height * (width + more);
        let steps = positions.div_ceil(STAGE);
        let across = (rows * a_row * chunks).div_ceil(of_tile);
        let tiles = across * outputs.div_ceil(tile_rows);
        let workers = most_workers.min(tiles * steps);
        let x_bytes = pixels * ROW;
        let bytes = x_bytes.next_multiple_of(8 * ROW);
        let stage = tile_rows * ROW + of_tile * bytes;
        let stages = (RING / stage).min(MOST_STAGES);
        if stages < 2 || (positions + STAGE).max(tiles * steps) > i32::MAX as usize {
            return None;
        }
        let slower = if stride > 1 { STRIDED } else { 1.0 };
        let of_x = (of_tile * x_bytes) as f64 * slower;
        let arriving = ((tile_rows * ROW) as f64 + of_x) / ARRIVING;
        let multiplied = (tile_rows * tile_columns * STAGE) as f64 / PRODUCTS_A_CLOCK;
        let int = |x: usize| x as i32;
        let (product, next) = match boxes {
            Boxes::OneTap => (kernel.columns / BOX * bytes, bytes),
            Boxes::Views => (bytes, ROW),
            Boxes::Halves => (ROW, bytes),
        };
        let cut = Cut {
            height: int(height),
            width: int(width + more),
            stride: int(stride),
            top: int(w.padding.top),
            left: int(w.padding.left),
            steps: int(steps),
            workers: int(workers),
            share: int(tiles * steps / workers),
            rest: int(tiles * steps % workers),
            across: int(across),
            boxes: int(of_tile),
            chunks: int(chunks),
            a_row: int(a_row),
            taps: int(taps),
            bytes: int(bytes),
            product: int(product),
            next: int(next),
            box_columns: int(if halves { BOX } else { taps * BOX }),
            view_columns: int(if halves { 96 } else { BOX }),
            x_bytes: int(x_bytes),
            stages: int(stages),
            k: std::array::from_fn(|j| int(of_k(j) * ROW)),
            outputs: int(outputs),
            inputs: int(inputs),
            rows: int(rows),
            columns: int(columns),
            accumulate: 0,
        };
        Some(Self {
            kernel,
            cut,
            workers,
            tiles,
            more,
            pixels,
            views,
            shared: (stages * stage + BEHIND) as u32,
            clocks: (tiles * steps) as f64 * (arriving.max(multiplied) + A_STAGE),
        })
    }

    /// f32 numbers of the tiles' partial sums.
    pub fn slots(&self) -> usize {
        let [rows, columns] = self.kernel.tile();
        (self.workers + self.tiles) * rows * columns
    }

    /// Lowest and highest corners (y, x) of x's im2col map.
    pub fn corners(&self, op: &Conv2d) -> [[i32; 2]; 2] {
        let w = &op.window;
        let high = |windows: usize, pad: usize, size: usize| {
            (w.stride * (windows - 1)) as i32 - pad as i32 - (size - 1) as i32
        };
        [
            [-(w.padding.top as i32), -(w.padding.left as i32)],
            [
                high(w.output.0, w.padding.top, w.input.0),
                high(w.output.1 + self.views, w.padding.left, w.input.1),
            ],
        ]
    }

    /// How the partial sums are added.
    pub fn sum(&self) -> Sum {
        const LANES: usize = 8; // threads for 32 inputs
        const MOST: usize = 512;
        const ENOUGH: usize = 320;
        let c = &self.cut;
        let (taps, outputs) = ((c.rows * c.columns) as usize, c.outputs as usize);
        let inputs = (c.inputs as usize).div_ceil(4 * LANES);
        // The parts of a tile, one more where they begin or end within it; eight of them a group.
        let parts = self.workers.div_ceil(self.tiles) + 1;
        let groups = (MOST / (LANES * taps)).min(parts.div_ceil(8));
        let of_one = LANES * taps * groups;
        // As many outputs as make a block worth its beginning, where that leaves blocks enough.
        let fits = |n: &usize| n * of_one <= ENOUGH && inputs * outputs >= 2 * WORKERS * n;
        let each = [32, 16, 8, 4, 2].into_iter().find(fits).unwrap_or(1);
        let threads = of_one * each;
        Sum {
            name: match taps {
                1 => "weight_sum_1",
                9 => "weight_sum_9",
                16 => "weight_sum_16",
                _ => "weight_sum",
            },
            grid: (inputs as u32, outputs.div_ceil(each) as u32, 1),
            threads: threads as u32,
            shared: (threads / LANES * (4 * LANES + 4) * size_of::<f32>()) as u32,
            outputs: each as i32,
            groups: groups as i32,
        }
    }
}

/// Of the kernel that adds the partial sums; the outputs of a block, and the groups of threads that
/// share the parts of each.
pub(super) struct Sum {
    pub name: &'static str,
    pub grid: (u32, u32, u32),
    pub threads: u32,
    pub shared: u32,
    pub outputs: i32,
    pub groups: i32,
}

#[cfg(test)]
mod tests;
