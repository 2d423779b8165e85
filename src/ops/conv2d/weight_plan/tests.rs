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
                    let across = group % c.a_row * c.taps;
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
                    let (number, view) = (byte / c.bytes as usize, byte % c.bytes as usize / ROW);
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
                    let chosen = (r * c.a_row + s / c.taps) * c.chunks + i / 64;
                    let tile = o / bm as i32 * c.across + chosen / c.boxes;
                    let column =
                        chosen % c.boxes * c.box_columns + s % c.taps * c.view_columns + i % 64;
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
    assert_eq!(taken((64, 128), 64, 4, 2), "weight_128_256");
    assert_eq!(taken((256, 512), 31, 4, 1), "weight_128_128_128_128");
    assert_eq!(taken((256, 256), 64, 1, 1), "weight_128_256");
}

#[test]
fn every_partial_sum_has_a_thread() {
    for (channels, kernel, width) in [
        ((32, 32), (1, 1), 4),
        ((512, 1536), (1, 1), 16),
        ((128, 128), (3, 3), 256),
        ((512, 512), (3, 3), 16),
        ((64, 128), (4, 4), 128),
        ((40, 72), (7, 7), 9),
        ((96, 48), (1, 7), 17),
    ] {
        let padding = Padding::same(3);
        let window = Window::new("test", (width, width), kernel, 1, padding).unwrap();
        let op = Conv2d {
            window,
            channels,
            packed: None,
        };
        let plan = Plan::new(&op, 8).unwrap();
        let (sum, taps) = (plan.sum(), (kernel.0 * kernel.1) as u32);
        let (outputs, groups) = (sum.outputs as u32, sum.groups as u32);
        assert_eq!(sum.threads, 8 * taps * groups * outputs, "{op:?}");
        assert!(sum.threads <= 512 && groups >= 1, "{op:?}");
        // A block's outputs lie in one tile, and the blocks take all of them.
        assert_eq!(64 % outputs, 0, "{op:?}");
        assert!(sum.grid.0 * 32 >= channels.0 as u32, "{op:?}");
        assert!(sum.grid.1 * outputs >= channels.1 as u32, "{op:?}");
        assert_eq!(sum.shared, sum.threads / 8 * 36 * 4, "{op:?}");
        // Every part of a tile in eight loads, unless there are no threads for more groups.
        let parts = (plan.workers.div_ceil(plan.tiles) + 1) as u32;
        assert!(
            8 * groups >= parts || (groups + 1) * 8 * taps > 512,
            "{op:?}"
        );
    }
}
