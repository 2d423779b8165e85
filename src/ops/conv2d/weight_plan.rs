//! How Hopper's weight gradient of a convolution (kernel_weight_sm90.cu) is cut into tiles, boxes and parts: arithmetic that the shape alone fixes.

use super::op::Conv2d;

/// Parts of the work: blocks of an H100 or H200, on any card.
const WORKERS: usize = 132;
/// Shared memory of a block's ring, and behind it: a sanitizer takes a product of views, which overlap, to read on as if they did not.
const RING: usize = 231_424 - BEHIND;
const BEHIND: usize = 8192;
const MOST_STAGES: usize = 8;
/// Positions of a stage, channels of a box, and bytes of these channels.
const STAGE: usize = 64;
const BOX: usize = 64;
const ROW: usize = 128;
/// Bytes a clock that arrive from L2 at a multiprocessor, and multiply-adds a clock.
const ARRIVING: f64 = 26.0;
const PRODUCTS_A_CLOCK: f64 = 2048.0;

/// A kernel: its warpgroups, one under the other or side by side, and the products of each, of 64 rows and `columns`.
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
    pub accumulate: i32,
}

#[cfg(feature = "cuda")]
impl Cut {
    /// The same, added to what is there or written over it.
    pub fn accumulating(self, accumulate: bool) -> Self {
        Self {
            accumulate: accumulate.into(),
            ..self
        }
    }
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
        if columns == 1 && boxes != Boxes::OneTap {
            return None;
        }
        let [tile_rows, tile_columns] = kernel.tile();
        let (taps, of_tile) = match boxes {
            Boxes::OneTap => (1, tile_columns / BOX),
            Boxes::Views => (kernel.columns / BOX, kernel.across()),
            Boxes::Halves => (3, 2),
        };
        // Lines of 16, 32 or a multiple of 64 positions need none of the pixels between them as positions.
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
        let span = stride * taps;
        let a_row = columns / span * stride + (columns % span).min(stride);
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
        let arriving = (tile_rows * ROW + of_tile * x_bytes) as f64 / ARRIVING;
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
            clocks: (tiles * steps) as f64 * arriving.max(multiplied),
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
        let c = &self.cut;
        let (taps, outputs) = ((c.rows * c.columns) as usize, c.outputs as usize);
        let inputs = (c.inputs as usize).div_ceil(4 * LANES);
        // Eight parts a group, where a block has threads for as many groups.
        let parts = self.workers.div_ceil(self.tiles);
        let groups = (1024 / (LANES * taps)).min(parts.div_ceil(8));
        // Outputs that share what a block works out first, where that leaves blocks enough.
        let shared = [16, 8, 4, 2]
            .into_iter()
            .find(|n| inputs * outputs / n >= 16 * WORKERS);
        let shared = shared.unwrap_or(1);
        Sum {
            grid: (inputs as u32, outputs.div_ceil(shared) as u32, 1),
            threads: (LANES * taps * groups) as u32,
            outputs: shared as i32,
        }
    }
}

/// Of the kernel that adds the partial sums; the outputs of a block.
pub(super) struct Sum {
    pub grid: (u32, u32, u32),
    pub threads: u32,
    pub outputs: i32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Padding;
    use crate::ops::window::Window;

    /// Small whole numbers, so that sums are exact in any order.
    fn values(count: usize, seed: usize) -> Vec<f32> {
        let value = |i: usize| ((i * 7919 + seed) * 104_729 / 64 % 7) as f32 - 3.0;
        (0..count).map(value).collect()
    }

    struct Map<'a> {
        values: &'a [f32],
        size: [i32; 4],
    }

    impl Map<'_> {
        fn at(&self, image: i32, y: i32, x: i32, channel: i32) -> f32 {
            let [b, h, w, c] = self.size;
            let inside = image < b && (0..h).contains(&y) && (0..w).contains(&x) && channel < c;
            match inside {
                true => self.values[(((image * h + y) * w + x) * c + channel) as usize],
                false => 0.0,
            }
        }

        /// An im2col copy: `pixels` rows of 64 channels.
        #[allow(clippy::too_many_arguments)]
        fn column(
            &self,
            [low, high]: [[i32; 2]; 2],
            stride: i32,
            pixels: usize,
            channel: i32,
            [mut x, mut y, mut image]: [i32; 3],
            [across, down]: [i32; 2],
        ) -> Vec<[f32; BOX]> {
            let mut rows = Vec::new();
            for _ in 0..pixels {
                rows.push(std::array::from_fn(|c| {
                    self.at(image, y + down, x + across, channel + c as i32)
                }));
                x += stride;
                if x > self.size[2] - 1 + high[1] {
                    (x, y) = (low[1], y + stride);
                }
                if y > self.size[1] - 1 + high[0] {
                    (y, image) = (low[0], image + 1);
                }
            }
            rows
        }
    }

    /// What the kernel computes, index by index.
    fn computed(plan: &Plan, op: &Conv2d, x: &Map, dy: &Map) -> Vec<f32> {
        let c = &plan.cut;
        let [bm, bn] = plan.kernel.tile();
        let mut tiles = vec![vec![0f32; bm * bn]; plan.tiles];
        for (tile, sums) in tiles.iter_mut().enumerate() {
            let (row, first) = (
                (tile as i32 / c.across) * bm as i32,
                tile as i32 % c.across * c.boxes,
            );
            for step in 0..c.steps {
                let (line, px) = (step * 64 / c.width, step * 64 % c.width);
                let at = [px, line % c.height, line / c.height];
                let of_dy: Vec<_> = (0..bm / 64)
                    .map(|m| {
                        let corners = [[0, 0], [0, plan.more as i32]];
                        dy.column(corners, 1, 64, row + 64 * m as i32, at, [0, 0])
                    })
                    .collect();
                let of_x: Vec<_> = (first..first + c.boxes)
                    .map(|b| {
                        let (group, chunk) = (b / c.chunks, b % c.chunks);
                        let in_row = group % c.a_row;
                        let across = in_row / c.stride * (c.stride * c.taps) + in_row % c.stride;
                        let from = [at[0] * c.stride - c.left, at[1] * c.stride - c.top, at[2]];
                        let tap = [across, (group / c.a_row).min(c.rows - 1)];
                        let corners = plan.corners(op);
                        x.column(corners, c.stride, plan.pixels, chunk * 64, from, tap)
                    })
                    .collect();
                let dy = |m: usize, position: usize| of_dy[m / 64][position][m % 64];
                for position in 0..64 {
                    let row_of_x = c.k[position / 16] as usize / ROW + position % 16;
                    for column in 0..bn {
                        // Where the product's descriptor lets it read.
                        let (product, within) =
                            (column / plan.kernel.columns, column % plan.kernel.columns);
                        let byte = product * c.product as usize + within / 64 * c.next as usize;
                        let (number, view) =
                            (byte / c.bytes as usize, byte % c.bytes as usize / ROW);
                        let value = of_x[number][row_of_x + view][within % 64];
                        for m in 0..bm.min((c.outputs - row) as usize) {
                            sums[m * bn + column] += dy(m, position) * value;
                        }
                    }
                }
            }
        }
        let mut dw = Vec::new();
        for o in 0..c.outputs {
            for i in 0..c.inputs {
                for r in 0..c.rows {
                    for s in 0..c.columns {
                        let block = c.stride * c.taps;
                        let in_row = s / block * c.stride + s % c.stride;
                        let chosen = (r * c.a_row + in_row) * c.chunks + i / 64;
                        let tile = o / bm as i32 * c.across + chosen / c.boxes;
                        let column = chosen % c.boxes * c.box_columns
                            + s % block / c.stride * c.view_columns
                            + i % 64;
                        dw.push(tiles[tile as usize][o as usize % bm * bn + column as usize]);
                    }
                }
            }
        }
        dw
    }

    fn expected(op: &Conv2d, maps: usize, x: &Map, dy: &Map) -> Vec<f32> {
        let (w, (inputs, outputs)) = (&op.window, op.channels);
        let mut dw = Vec::new();
        for o in 0..outputs {
            for i in 0..inputs {
                for tap in 0..op.taps() {
                    let (r, s) = (tap / w.kernel.1, tap % w.kernel.1);
                    let mut sum = 0.0;
                    for b in 0..maps {
                        for y in 0..w.output.0 {
                            for px in 0..w.output.1 {
                                let from = [
                                    (y * w.stride + r) as i32 - w.padding.top as i32,
                                    (px * w.stride + s) as i32 - w.padding.left as i32,
                                ];
                                sum += x.at(b as i32, from[0], from[1], i as i32)
                                    * dy.at(b as i32, y as i32, px as i32, o as i32);
                            }
                        }
                    }
                    dw.push(sum);
                }
            }
        }
        dw
    }

    #[test]
    fn every_weight_gets_its_sum_by_every_cut() {
        let cases = [
            (2, (3, 5), (40, 8), (3, 3), 1, Padding::same(1)),
            (1, (2, 16), (72, 8), (3, 3), 1, Padding::same(1)),
            (1, (3, 32), (8, 72), (2, 4), 1, Padding::new(1, 0, 2, 1)),
            (1, (2, 64), (96, 8), (1, 3), 1, Padding::new(0, 0, 1, 1)),
            (3, (5, 6), (8, 8), (3, 3), 2, Padding::new(0, 1, 0, 1)),
            (2, (6, 7), (72, 8), (4, 4), 2, Padding::same(1)),
            (2, (5, 4), (136, 8), (1, 1), 1, Padding::same(0)),
            (1, (9, 8), (80, 8), (5, 5), 1, Padding::same(2)),
            (1, (4, 9), (8, 8), (1, 7), 2, Padding::new(0, 0, 3, 2)),
        ];
        for (maps, input, channels, kernel, stride, padding) in cases {
            let window = Window::new("test", input, kernel, stride, padding).unwrap();
            let op = Conv2d {
                window,
                channels,
                packed: None,
            };
            let size = |(h, w): (usize, usize), c| [maps, h, w, c].map(|n| n as i32);
            let count = |size: [i32; 4]| size.iter().product::<i32>() as usize;
            let (of_x, of_dy) = (size(input, channels.0), size(window.output, channels.1));
            let (x, dy) = (values(count(of_x), 1), values(count(of_dy), 2));
            let x = Map {
                values: &x,
                size: of_x,
            };
            let dy = Map {
                values: &dy,
                size: of_dy,
            };
            let expected = expected(&op, maps, &x, &dy);
            let mut cuts = 0;
            for kernel in &KERNELS {
                for boxes in [Boxes::Views, Boxes::OneTap, Boxes::Halves] {
                    let Some(plan) = Plan::of(&op, maps, kernel, boxes, WORKERS) else {
                        continue;
                    };
                    cuts += 1;
                    let found = computed(&plan, &op, &x, &dy);
                    assert!(found == expected, "{op:?} by {} and {boxes:?}", kernel.name);
                }
            }
            assert!(cuts >= 6, "{op:?}");
        }
    }

    #[test]
    fn a_cut_is_taken_for_its_few_clocks() {
        let taken = |channels, width, kernel, stride| {
            let padding = Padding::same(kernel / 2);
            let window = Window::new("test", (width, width), (kernel, kernel), stride, padding);
            let window = window.unwrap();
            Plan::new(
                &Conv2d {
                    window,
                    channels,
                    packed: None,
                },
                32,
            )
            .unwrap()
            .kernel
            .name
        };
        assert_eq!(taken((128, 128), 64, 3, 1), "weight_128_192_192");
        assert_eq!(taken((64, 64), 64, 3, 1), "weight_64_192_192_192");
        assert_eq!(taken((96, 96), 64, 3, 1), "weight_128_96_96_96");
        assert_eq!(taken((192, 192), 64, 3, 1), "weight_192_192");
        assert_eq!(taken((64, 128), 64, 4, 2), "weight_128_128_128_128");
        assert_eq!(taken((256, 256), 64, 1, 1), "weight_128_256");
    }
}
