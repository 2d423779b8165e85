//! Hopper's own kernels (kernel_sm90.cu): convolutions of bf16 maps by TMA's im2col mode, forward and the gradient of the input, and those of a
//! nearest ×2 upsampling and a 3×3 convolution as one.
//!
//! Maps are [B,H,W,C] with C a multiple of 8 from 32 on, weights [O,kh,kw,I] in bf16, sums in f32. Functions return false for what the kernels
//! do not serve: other cards, other channels, strides beyond 2, windows that reach further than a tensor map does.

use candle_core::Result;
use half::bf16;

use super::op::{Conv2d, Reach};
use crate::ops::cuda::{Gpu, TensorMap, View, ViewMut, grid_of, launch};
use crate::ops::product::cuda::{STAGE, WARP_ROWS};

/// Fewest channels that the kernels are for.
const NARROWEST: usize = 32;
/// Offsets from a map's corners that a tensor map takes.
const CORNER: std::ops::RangeInclusive<i32> = -128..=127;
/// Positions whose sums lie together.
const SUMMED: usize = 64;
/// What a swapped tile's warpgroup writes at a time.
const SWAPPED_ROWS: usize = 64;

/// How a kernel cuts its work (`Cut` and `Swapped` in windows_sm90.cuh).
struct Cut {
    name: &'static str,
    /// Positions and columns of a tile.
    rows: usize,
    columns: usize,
    stages: usize,
    /// Blocks of a cluster.
    cluster: usize,
    /// Columns that a warp writes at a time.
    part: usize,
    swapped: bool,
    /// TFLOP/s where every multiprocessor has work: what a cut is chosen by.
    rate: f64,
}

impl Cut {
    /// Bytes of shared memory: stages, two boxes for each of eight warps and their columns' sums, barriers.
    fn shared(&self, transposed: bool, sums: bool) -> u32 {
        let columns = match transposed {
            true => self.columns.next_multiple_of(64),
            false => self.columns,
        };
        let boxes = 8 * 2 * WARP_ROWS * self.part * 2;
        let sums = if sums && !self.swapped { 8 * self.columns * 8 } else { 0 };
        let barriers = (2 * self.stages + 8 * 4) * 8;
        (self.stages * (self.rows + columns) * STAGE * 2 + boxes + sums + barriers) as u32
    }

    /// Clusters' tiles of a result.
    fn tiles(&self, positions: usize, columns: usize) -> usize {
        positions.div_ceil(self.rows * self.cluster) * columns.div_ceil(self.columns)
    }

    /// Clusters of them that run at a time.
    fn clusters(&self, gpu: &Gpu) -> usize {
        gpu.multiprocessors() as usize / self.cluster
    }

    /// What the work takes, in units of its own.
    fn cost(&self, gpu: &Gpu, positions: usize, columns: usize) -> f64 {
        let rounds = self.tiles(positions, columns).div_ceil(self.clusters(gpu));
        (rounds * self.rows * self.columns) as f64 / self.rate
    }

    /// A map as y, by the boxes that are written.
    fn boxes(&self, address: u64, rows: usize, columns: usize) -> Result<TensorMap> {
        let height = if self.swapped { SWAPPED_ROWS } else { WARP_ROWS };
        TensorMap::swizzled(address, [rows, columns], [height, self.part])
    }
}

static CUTS: [Cut; 4] = [
    Cut { name: "128_192", rows: 128, columns: 192, stages: 4, cluster: 2, part: 64, swapped: false, rate: 650. },
    Cut { name: "192_128", rows: 192, columns: 128, stages: 4, cluster: 2, part: 64, swapped: false, rate: 620. },
    Cut { name: "128_256", rows: 128, columns: 256, stages: 4, cluster: 2, part: 32, swapped: false, rate: 600. },
    Cut { name: "256_64", rows: 256, columns: 64, stages: 4, cluster: 2, part: 64, swapped: true, rate: 400. },
];

/// One convolution of a launch (`Phase` in windows_sm90.cuh).
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Phase {
    x: TensorMap,
    positions: i32,
    height: i32,
    width: i32,
    low: [i32; 2],
    taps: [i32; 2],
    /// Of the weights: the first one, and how far to the next one down and across.
    tap: i32,
    steps: [i32; 2],
    to: [i32; 2],
    unused: [i32; 4],
}

/// A launch's only argument (`Convolution` in windows_sm90.cuh).
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Convolution {
    weight: TensorMap,
    y: TensorMap,
    added: TensorMap,
    phases: [Phase; 4],
    blocks: i32,
    columns: i32,
    stride: i32,
    height: i32,
    width: i32,
    slope: f32,
    bias: u64,
    to: u64,
    add: u64,
    sums: u64,
    unused: u64,
}

/// What a result passes through before it is rounded, and the sums of it that are kept.
#[derive(Default)]
pub(super) struct Finish<'a> {
    /// f32 [O].
    pub bias: Option<View<'a, f32>>,
    /// As y.
    pub residual: Option<View<'a, bf16>>,
    /// Of a leaky ReLU after both, 0 for a ReLU.
    pub slope: Option<f32>,
    /// f32 [B, n, O, 2]: mean, and sum of squares around it, of n times 64 positions of an image of the rounded y, in a fixed order; of the four
    /// phases of an upsampling one after the other. Their number must be a multiple of 64.
    pub sums: Option<ViewMut<'a, f32>>,
}

/// A map [B,H,W,C] that windows move over.
#[derive(Clone, Copy)]
struct Map {
    address: u64,
    maps: usize,
    size: (usize, usize),
    channels: usize,
}

/// Where windows over a map lie, and what weights they meet.
struct Windows {
    /// Of them in a map, down and across.
    output: (usize, usize),
    low: [isize; 2],
    stride: usize,
    taps: [usize; 2],
    tap: usize,
    steps: [isize; 2],
    to: (usize, usize),
}

impl Windows {
    /// As the kernel takes them; nothing where a tensor map does not reach.
    fn phase(&self, map: &Map, rows: usize) -> Result<Option<Phase>> {
        let output = [self.output.0, self.output.1];
        let size = [map.size.0, map.size.1];
        let low = self.low.map(|x| x as i32);
        let high: [i32; 2] = std::array::from_fn(|i| {
            low[i] + ((output[i] - 1) * self.stride) as i32 - (size[i] as i32 - 1)
        });
        if !low.iter().chain(&high).all(|x| CORNER.contains(x)) {
            return Ok(None);
        }
        let sizes = [map.maps, size[0], size[1], map.channels];
        let x = TensorMap::im2col(map.address, sizes, low, high, self.stride, rows)?;
        Ok(Some(Phase {
            x,
            positions: (map.maps * output[0] * output[1]) as i32,
            height: output[0] as i32,
            width: output[1] as i32,
            low,
            taps: self.taps.map(|x| x as i32),
            tap: self.tap as i32,
            steps: self.steps.map(|x| x as i32),
            to: [self.to.0 as i32, self.to.1 as i32],
            unused: [0; 4],
        }))
    }
}

/// What is computed from a map, to a map of `columns` channels.
struct Work<'a> {
    map: Map,
    windows: Vec<Windows>,
    /// bf16 [outer, taps, inner]; `transposed`: the map's channels are `outer`, otherwise `inner`.
    weight: View<'a, bf16>,
    taps: usize,
    transposed: bool,
    /// Of y.
    size: (usize, usize),
    columns: usize,
}

impl Work<'_> {
    fn run(&self, gpu: &Gpu, finish: Finish, y: ViewMut<bf16>) -> Result<bool> {
        let (columns, channels, maps) = (self.columns, self.map.channels, self.map.maps);
        let positions = maps * self.size.0 * self.size.1;
        let served = |channels: usize| channels >= NARROWEST && channels.is_multiple_of(8);
        let scattered = self.windows.len() > 1;
        let sums_fit = self
            .windows
            .iter()
            .all(|w| (w.output.0 * w.output.1).is_multiple_of(SUMMED));
        if !gpu.is_hopper()
            || !served(channels)
            || !served(columns)
            || maps * self.map.size.0 * self.map.size.1 > i32::MAX as usize
            || positions > i32::MAX as usize
            || (finish.sums.is_some() && !sums_fit)
        {
            return Ok(false);
        }
        assert_eq!(self.weight.len(), columns * self.taps * channels);
        assert_eq!(y.len(), positions * columns);
        assert!(finish.residual.is_none_or(|r| r.len() == y.len()));
        assert!(finish.bias.is_none_or(|b| b.len() == columns));
        let sums = finish.sums.as_ref();
        assert!(sums.is_none_or(|s| s.len() == positions / SUMMED * columns * 2));

        let cut = CUTS
            .iter()
            .min_by(|a, b| {
                let cost = |cut: &Cut| cut.cost(gpu, positions, columns);
                cost(a).total_cmp(&cost(b))
            })
            .expect("there are cuts");
        let mut phases = Vec::with_capacity(4);
        for windows in &self.windows {
            match windows.phase(&self.map, cut.rows)? {
                Some(phase) => phases.push(phase),
                None => return Ok(false),
            }
        }
        let none = Phase { positions: 0, ..phases[0] };
        let tiles: usize = phases.iter().map(|p| cut.tiles(p.positions as usize, columns)).sum();
        phases.resize(4, none);

        let weight = match self.transposed {
            true => ([channels, self.taps, columns], [STAGE / cut.cluster, 1, 64]),
            false => ([columns, self.taps, channels], [cut.columns / cut.cluster, 1, STAGE]),
        };
        let to = cut.boxes(y.address(), positions, columns)?;
        let convolution = Convolution {
            weight: TensorMap::swizzled(self.weight.address(), weight.0, weight.1)?,
            y: to,
            added: match finish.residual {
                Some(residual) => cut.boxes(residual.address(), positions, columns)?,
                None => to,
            },
            phases: [phases[0], phases[1], phases[2], phases[3]],
            blocks: channels.div_ceil(STAGE) as i32,
            columns: columns as i32,
            stride: self.windows[0].stride as i32,
            height: self.size.0 as i32,
            width: self.size.1 as i32,
            slope: finish.slope.unwrap_or(1.0),
            bias: finish.bias.map_or(0, |bias| bias.address()),
            to: y.address(),
            add: finish.residual.map_or(0, |residual| residual.address()),
            sums: sums.map_or(0, |sums| sums.address()),
            unused: 0,
        };
        let parts = [
            (self.transposed, "_transposed"),
            (scattered, "_phases"),
            (finish.residual.is_some() && !scattered, "_added"),
            (sums.is_some(), "_sums"),
        ];
        let mut name = format!("conv2d_{}", cut.name);
        parts.iter().filter(|(has, _)| *has).for_each(|(_, part)| name += part);
        let shared = cut.shared(self.transposed, sums.is_some());
        let kernel = gpu.kernel("conv2d_sm90", &name, shared)?;
        let mut launch = gpu.launch(&kernel);
        launch.structure(&convolution);
        let blocks = (tiles.min(cut.clusters(gpu)) * cut.cluster) as u32;
        // SAFETY: the argument is the kernel's; the views' lengths were compared with the sizes.
        unsafe { launch.run((blocks, 1, 1), 384, shared)? };
        Ok(true)
    }
}

/// y [B,H',W',O] of `maps` maps x [B,H,W,I] and the packed weight [O,kh,kw,I].
pub(super) fn forward(
    gpu: &Gpu,
    op: &Conv2d,
    maps: usize,
    x: View<bf16>,
    weight: View<bf16>,
    finish: Finish,
    y: ViewMut<bf16>,
) -> Result<bool> {
    let w = &op.window;
    if w.stride > 2 {
        return Ok(false);
    }
    let (i, o) = op.channels;
    assert_eq!(x.len(), maps * w.input.0 * w.input.1 * i);
    let work = Work {
        map: Map { address: x.address(), maps, size: w.input, channels: i },
        windows: vec![Windows {
            output: w.output,
            low: [-(w.padding.top as isize), -(w.padding.left as isize)],
            stride: w.stride,
            taps: [w.kernel.0, w.kernel.1],
            tap: 0,
            steps: [w.kernel.1 as isize, 1],
            to: (0, 0),
        }],
        weight,
        taps: op.taps(),
        transposed: false,
        size: w.output,
        columns: o,
    };
    work.run(gpu, finish, y)
}

/// dL/dx [B,H,W,I] from `grad` [B,H',W',O] and the packed weight, plus `added` of its shape.
pub(super) fn input_gradient(
    gpu: &Gpu,
    op: &Conv2d,
    maps: usize,
    grad: View<bf16>,
    weight: View<bf16>,
    added: Option<View<bf16>>,
    dx: ViewMut<bf16>,
) -> Result<bool> {
    let w = &op.window;
    if w.stride > 2 {
        return Ok(false);
    }
    let (i, o) = op.channels;
    assert_eq!(grad.len(), maps * w.output.0 * w.output.1 * o);
    let work = Work {
        map: Map { address: grad.address(), maps, size: w.output, channels: o },
        windows: op.phases().map(|phase| reaching(op, phase)).collect(),
        weight,
        taps: op.taps(),
        transposed: true,
        size: w.input,
        columns: i,
    };
    let finish = Finish { residual: added, ..Finish::default() };
    work.run(gpu, finish, dx)
}

/// The windows of outputs that reach the inputs of a phase.
fn reaching(op: &Conv2d, phase: (usize, usize)) -> Windows {
    let across = op.window.kernel.1;
    let [down, right] = op.reach(phase);
    let output = (down.positions, right.positions);
    if down.count == 0 || right.count == 0 {
        // No output does: one tap behind the last of the weights, which is nought.
        return Windows {
            output,
            low: [0, 0],
            stride: 1,
            taps: [1, 1],
            tap: op.taps(),
            steps: [0, 0],
            to: phase,
        };
    }
    let step = |reach: &Reach| -(reach.step as isize);
    Windows {
        output,
        low: [down.origin, right.origin],
        stride: 1,
        taps: [down.count, right.count],
        tap: down.highest * across + right.highest,
        steps: [step(&down) * across as isize, step(&right)],
        to: phase,
    }
}

/// Taps of a 3×3 convolution after an upsampling, folded: 4×4, of which a position of the small map meets 2×2.
const FOLDED: usize = 16;

/// Elements of a weight [O,I,3,3] folded for [`upsampled`].
pub(super) fn folded_len((i, o): (usize, usize)) -> usize {
    FOLDED * i * o
}

/// The weight f32 [O,I,3,3] of a convolution behind a nearest ×2 upsampling, summed where it meets the same position of the small map:
/// bf16 [O,4,4,I].
pub(super) fn fold(
    gpu: &Gpu,
    (i, o): (usize, usize),
    weight: View<f32>,
    folded: ViewMut<bf16>,
) -> Result<()> {
    assert_eq!(weight.len(), o * i * 9);
    assert_eq!(folded.len(), folded_len((i, o)));
    let grid = grid_of(folded.len(), 256);
    // SAFETY: O·I·9 and O·16·I elements.
    unsafe { launch!(gpu, "conv2d_fold", "fold_upsampled", grid, 256, 0; weight, folded, o as i32, i as i32) }
}

/// A nearest ×2 upsampling of `maps` maps x [B,H,W,I] and a 3×3 convolution with padding 1, by the folded weight: y [B,2H,2W,O]. Four
/// convolutions of 2×2 taps over the small map, one for each parity of y's rows and columns: 4/9 of the FLOP.
pub(super) fn upsampled(
    gpu: &Gpu,
    (maps, height, width): (usize, usize, usize),
    (i, o): (usize, usize),
    x: View<bf16>,
    folded: View<bf16>,
    finish: Finish,
    y: ViewMut<bf16>,
) -> Result<bool> {
    assert_eq!(x.len(), maps * height * width * i);
    let phases = [(0, 0), (0, 1), (1, 0), (1, 1)];
    let work = Work {
        map: Map { address: x.address(), maps, size: (height, width), channels: i },
        windows: phases
            .into_iter()
            .map(|to| Windows {
                output: (height, width),
                low: [to.0 as isize - 1, to.1 as isize - 1],
                stride: 1,
                taps: [2, 2],
                tap: (3 - to.0) * 4 + 3 - to.1,
                steps: [-8, -2],
                to,
            })
            .collect(),
        weight: folded,
        taps: FOLDED,
        transposed: false,
        size: (2 * height, 2 * width),
        columns: o,
    };
    work.run(gpu, finish, y)
}

/// The gradient of [`upsampled`] for x, from `grad` [B,2H,2W,O]: a 4×4 convolution of stride 2, plus `added` of the shape of x.
pub(super) fn upsampled_gradient(
    gpu: &Gpu,
    (maps, height, width): (usize, usize, usize),
    (i, o): (usize, usize),
    grad: View<bf16>,
    folded: View<bf16>,
    added: Option<View<bf16>>,
    dx: ViewMut<bf16>,
) -> Result<bool> {
    assert_eq!(grad.len(), maps * 4 * height * width * o);
    let work = Work {
        map: Map { address: grad.address(), maps, size: (2 * height, 2 * width), channels: o },
        windows: vec![Windows {
            output: (height, width),
            low: [-1, -1],
            stride: 2,
            taps: [4, 4],
            tap: 0,
            steps: [4, 1],
            to: (0, 0),
        }],
        weight: folded,
        taps: FOLDED,
        transposed: true,
        size: (height, width),
        columns: i,
    };
    let finish = Finish { residual: added, ..Finish::default() };
    work.run(gpu, finish, dx)
}
