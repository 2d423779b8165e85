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
/// Blocks of a cluster, one under the other.
const PAIR: usize = 2;

/// How a kernel cuts its work (`Cut` and `Swapped` in windows_sm90.cuh).
struct Cut {
    name: &'static str,
    /// Positions and columns of a tile.
    rows: usize,
    columns: usize,
    stages: usize,
    /// Columns that a warp writes at a time.
    part: usize,
    swapped: bool,
    /// Taps of a line that are one copy of x.
    taps: usize,
    /// TFLOP/s where every multiprocessor has work: what a cut is chosen by.
    rate: f64,
}

impl Cut {
    /// Positions that a stage holds.
    fn loaded(&self) -> usize {
        if self.taps > 1 { self.rows + 16 } else { self.rows }
    }

    /// Positions that are copied at a time.
    fn copied(&self) -> usize {
        if self.taps > 1 { self.loaded() / 2 } else { self.rows }
    }

    /// Bytes of shared memory: stages, two boxes for each of eight warps and their columns' sums, barriers.
    fn shared(&self, transposed: bool, sums: bool) -> u32 {
        let columns = match transposed {
            true => self.columns.next_multiple_of(64),
            false => self.columns,
        };
        let boxes = 8 * 2 * WARP_ROWS * self.part * 2;
        let sums = if sums && !self.swapped { 8 * self.columns * 8 } else { 0 };
        let barriers = (2 * self.stages + 8 * 4) * 8;
        let stage = (self.loaded() + self.taps * columns) * STAGE * 2;
        (self.stages * stage + boxes + sums + barriers) as u32
    }

    /// A pair's tiles of a result.
    fn tiles(&self, positions: usize, columns: usize) -> usize {
        positions.div_ceil(self.rows * PAIR) * columns.div_ceil(self.columns)
    }

    /// What the work takes, in units of its own.
    fn cost(&self, gpu: &Gpu, positions: usize, columns: usize) -> f64 {
        let pairs = gpu.multiprocessors() as usize / PAIR;
        let rounds = self.tiles(positions, columns).div_ceil(pairs);
        (rounds * self.rows * self.columns) as f64 / self.rate
    }

    /// Rows of the boxes that are written.
    fn box_rows(&self) -> usize {
        if self.swapped { SWAPPED_ROWS } else { WARP_ROWS }
    }

    /// The part of a line, or the lines, that a box of a map of so many lines and columns is: nothing where they do not fill it.
    fn lines(&self, (height, width): (usize, usize)) -> Option<[usize; 2]> {
        let rows = self.box_rows();
        if width.is_multiple_of(rows) {
            return Some([1, rows]);
        }
        let lines = rows / width;
        (rows.is_multiple_of(width) && height.is_multiple_of(lines)).then_some([lines, width])
    }
}

/// The one that also writes by address, position by position.
const ANYWHERE: &str = "192_128";

static CUTS: [Cut; 6] = [
    cut("128_192", 128, 192, 4, 64, 650.),
    cut("192_128", 192, 128, 4, 64, 620.),
    cut("128_256", 128, 256, 4, 32, 600.),
    cut("256_96", 256, 96, 4, 32, 500.),
    Cut { swapped: true, ..cut("256_64", 256, 64, 4, 64, 400.) },
    Cut { swapped: true, taps: 3, ..cut("lines_64", 256, 64, 3, 64, 600.) },
];

const fn cut(
    name: &'static str,
    rows: usize,
    columns: usize,
    stages: usize,
    part: usize,
    rate: f64,
) -> Cut {
    Cut { name, rows, columns, stages, part, swapped: false, taps: 1, rate }
}

/// One convolution of a launch (`Phase` in windows_sm90.cuh).
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Phase {
    x: TensorMap,
    y: TensorMap,
    added: TensorMap,
    positions: i32,
    height: i32,
    width: i32,
    pitch: i32,
    low: [i32; 2],
    taps: [i32; 2],
    tap: i32,
    tap_steps: [i32; 2],
    to: [i32; 2],
    unused: [i32; 3],
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
    half: i32,
    stride: i32,
    height: i32,
    width: i32,
    step: i32,
    slope: f32,
    bias: u64,
    to: u64,
    add: u64,
    sums: u64,
}

const _: () = assert!(size_of::<Phase>() == 448 && size_of::<Convolution>() == 2240);

/// What a result passes through before it is rounded, and the sums of it that are kept.
#[derive(Default)]
pub(super) struct Finish<'a> {
    /// f32 [O].
    pub bias: Option<View<'a, f32>>,
    /// As y.
    pub residual: Option<View<'a, bf16>>,
    /// Of a leaky ReLU after both, 0 for a ReLU.
    pub slope: Option<f32>,
    /// f32 [B, blocks, O, 2]: mean, and sum of squares around it, of the rounded values of each [`Blocks`].
    pub sums: Option<ViewMut<'a, f32>>,
}

/// The positions of an image whose sums lie together: 64 places each, in lines of `pitch` places whose first `width` are positions. Where the two
/// are the same, each block is 64 positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Blocks {
    pub count: usize,
    pub pitch: usize,
    pub width: usize,
}

/// A map [B,H,W,C] in bf16.
#[derive(Clone, Copy)]
struct Map {
    address: u64,
    maps: usize,
    size: (usize, usize),
    channels: usize,
}

/// Where windows over a map lie, and what weights they meet.
#[derive(Clone, Copy)]
struct Windows {
    /// Of them in a map, down and across.
    output: (usize, usize),
    low: [isize; 2],
    stride: usize,
    taps: [usize; 2],
    /// The first one's of the weights, and how far to the next one down and across.
    tap: usize,
    tap_steps: [isize; 2],
    to: (usize, usize),
}

impl Windows {
    /// Places of a line where `taps` of it are one copy: with what lies between two lines.
    fn pitch(&self, cut: &Cut) -> usize {
        self.output.1 + if cut.taps > 1 { self.taps[1] - 1 } else { 0 }
    }

    /// How far the last window lies from the map's last position, down and across.
    fn high(&self, size: (usize, usize), cut: &Cut) -> [i32; 2] {
        let last = [self.output.0, self.pitch(cut)].map(|n| ((n - 1) * self.stride) as i32);
        let size = [size.0 as i32, size.1 as i32];
        std::array::from_fn(|i| self.low[i] as i32 + last[i] - (size[i] - 1))
    }
}

/// How results reach y (`To` in windows_sm90.cuh).
#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    Rows,
    Lines,
    Places,
}

/// What is computed: windows over maps to maps of `columns` channels.
struct Work {
    maps: usize,
    /// Of the maps that the windows move over.
    input: (usize, usize),
    channels: usize,
    /// One, or one for each parity of y's rows and columns.
    windows: Vec<Windows>,
    taps: usize,
    /// The weights are bf16 [outer, taps, inner]: the sums run over `outer`, otherwise over `inner`.
    transposed: bool,
    /// Of y.
    size: (usize, usize),
    columns: usize,
}

impl Work {
    fn scattered(&self) -> bool {
        self.windows.len() > 1
    }

    fn positions(&self) -> usize {
        self.maps * self.size.0 * self.size.1
    }

    /// The cut that is expected to be fastest of those that serve, and how its results reach y.
    fn choose(&self, gpu: &Gpu, sums: bool) -> Option<(&'static Cut, To)> {
        let served = |channels: usize| channels >= NARROWEST && channels.is_multiple_of(8);
        let input = self.maps * self.input.0 * self.input.1;
        // A cut by lines counts up to six more places a line.
        let counted = input.max(self.positions()) * 8 <= i32::MAX as usize;
        if !gpu.is_hopper() || !served(self.channels) || !served(self.columns) || !counted {
            return None;
        }
        let serving = CUTS
            .iter()
            .filter_map(|cut| Some((cut, self.reaching(cut, sums)?)));
        let cost = |cut: &Cut| -> f64 {
            let places = |w: &Windows| self.maps * w.output.0 * w.pitch(cut);
            let of = |w| cut.cost(gpu, places(w), self.columns) * (w.taps[0] * w.taps[1]) as f64;
            self.windows.iter().map(of).sum()
        };
        serving.min_by(|a, b| cost(a.0).total_cmp(&cost(b.0)))
    }

    /// How a cut's results reach y, if it serves.
    fn reaching(&self, cut: &Cut, sums: bool) -> Option<To> {
        let within = |w: &Windows| {
            let corners = w.low.map(|x| x as i32).into_iter().chain(w.high(self.input, cut));
            corners.into_iter().all(|x| CORNER.contains(&x))
        };
        let summed = |w: &Windows| (w.output.0 * w.pitch(cut)).is_multiple_of(SUMMED);
        if !self.windows.iter().all(|w| within(w) && (!sums || summed(w))) {
            return None;
        }
        if cut.taps > 1 {
            let first = &self.windows[0];
            let fits = !self.scattered() && first.stride == 1 && first.taps[1] == cut.taps;
            return fits.then_some(To::Places);
        }
        if !self.scattered() {
            return Some(To::Rows);
        }
        match self.windows.iter().all(|w| cut.lines(w.output).is_some()) {
            true => Some(To::Lines),
            false => (cut.name == ANYWHERE && !sums).then_some(To::Places),
        }
    }

    fn blocks(&self, gpu: &Gpu) -> Option<Blocks> {
        let (cut, _) = self.choose(gpu, true)?;
        let first = &self.windows[0];
        let count = self.windows.iter().map(|w| w.output.0 * w.pitch(cut) / SUMMED);
        Some(Blocks {
            count: count.sum(),
            pitch: first.pitch(cut),
            width: first.output.1,
        })
    }

    fn run(
        &self,
        gpu: &Gpu,
        x: View<bf16>,
        weight: View<bf16>,
        finish: Finish,
        y: ViewMut<bf16>,
    ) -> Result<bool> {
        let (columns, channels, positions) = (self.columns, self.channels, self.positions());
        let sums = finish.sums.as_ref();
        let Some((cut, to)) = self.choose(gpu, sums.is_some()) else {
            return Ok(false);
        };
        assert_eq!(x.len(), self.maps * self.input.0 * self.input.1 * channels);
        assert_eq!(weight.len(), columns * self.taps * channels);
        assert_eq!(y.len(), positions * columns);
        assert!(finish.residual.is_none_or(|r| r.len() == y.len()));
        assert!(finish.bias.is_none_or(|b| b.len() == columns));
        let summed = |w: &Windows| self.maps * w.output.0 * w.pitch(cut) / SUMMED * columns * 2;
        assert!(sums.is_none_or(|s| s.len() == self.windows.iter().map(summed).sum()));

        let x = Map { address: x.address(), maps: self.maps, size: self.input, channels };
        let result = Map { address: y.address(), maps: self.maps, size: self.size, channels: columns };
        let added = Map {
            address: finish.residual.map_or(result.address, |r| r.address()),
            ..result
        };
        let phases = self
            .windows
            .iter()
            .map(|w| self.phase(cut, to, w, [x, result, added]))
            .collect::<Result<Vec<_>>>()?;
        let tiles: usize = phases.iter().map(|p| cut.tiles(p.positions as usize, columns)).sum();
        let none = Phase { positions: 0, ..phases[0] };
        let weight = match self.transposed {
            true => TensorMap::swizzled(
                weight.address(),
                [channels, self.taps, columns],
                [STAGE / PAIR, 1, 64],
            ),
            false => TensorMap::swizzled(
                weight.address(),
                [columns, self.taps, channels],
                [cut.columns / PAIR, 1, STAGE],
            ),
        };
        let convolution = Convolution {
            weight: weight?,
            y: self.rows(cut, &result)?,
            added: self.rows(cut, &added)?,
            phases: std::array::from_fn(|i| phases.get(i).copied().unwrap_or(none)),
            blocks: channels.div_ceil(STAGE) as i32,
            columns: columns as i32,
            half: i32::from(channels.next_multiple_of(STAGE) - channels >= STAGE / 2),
            stride: self.windows[0].stride as i32,
            height: self.size.0 as i32,
            width: self.size.1 as i32,
            step: if self.scattered() { 2 } else { 1 },
            slope: finish.slope.unwrap_or(1.0),
            bias: finish.bias.map_or(0, |bias| bias.address()),
            to: y.address(),
            add: finish.residual.map_or(0, |residual| residual.address()),
            sums: sums.map_or(0, |sums| sums.address()),
        };
        let parts = [
            (self.transposed, "_transposed"),
            (to == To::Lines, "_lines"),
            (to == To::Places && cut.taps == 1, "_places"),
            (sums.is_some(), "_sums"),
        ];
        let parts = parts.iter().filter(|(has, _)| *has).map(|(_, part)| *part);
        let name: String = ["conv2d_", cut.name].into_iter().chain(parts).collect();
        let shared = cut.shared(self.transposed, sums.is_some());
        let kernel = gpu.kernel("conv2d_sm90", &name, shared)?;
        let mut launch = gpu.launch(&kernel);
        launch.structure(&convolution);
        let pairs = tiles.min(gpu.multiprocessors() as usize / PAIR);
        // SAFETY: the argument is the kernel's; the views' lengths were compared with the sizes.
        unsafe { launch.run(((pairs * PAIR) as u32, 1, 1), 384, shared)? };
        Ok(true)
    }

    /// A map whose positions are rows.
    fn rows(&self, cut: &Cut, map: &Map) -> Result<TensorMap> {
        let (rows, columns) = (self.positions(), map.channels);
        let boxes = [cut.box_rows(), cut.part];
        TensorMap::strided(map.address, [rows, columns], [columns, 1], boxes)
    }

    /// Windows as the kernel takes them, over x, and their places in y and in what is added.
    fn phase(&self, cut: &Cut, to: To, w: &Windows, [x, y, added]: [Map; 3]) -> Result<Phase> {
        let low = w.low.map(|x| x as i32);
        let sizes = [x.maps, x.size.0, x.size.1, x.channels];
        let high = w.high(x.size, cut);
        let places = |map: &Map| match (to, cut.lines(w.output)) {
            (To::Lines, Some([lines, across])) => {
                let (line, c) = (map.size.1 * map.channels, map.channels);
                let first = (w.to.0 * map.size.1 + w.to.1) * c;
                TensorMap::strided(
                    map.address + (first * size_of::<bf16>()) as u64,
                    [map.maps, w.output.0, w.output.1, c],
                    [map.size.0 * line, 2 * line, 2 * c, 1],
                    [1, lines, across, cut.part],
                )
            }
            _ => self.rows(cut, map),
        };
        Ok(Phase {
            x: TensorMap::im2col(x.address, sizes, low, high, w.stride, cut.copied())?,
            y: places(&y)?,
            added: places(&added)?,
            positions: (x.maps * w.output.0 * w.pitch(cut)) as i32,
            height: w.output.0 as i32,
            width: w.output.1 as i32,
            pitch: w.pitch(cut) as i32,
            low,
            taps: w.taps.map(|x| x as i32),
            tap: w.tap as i32,
            tap_steps: w.tap_steps.map(|x| x as i32),
            to: [w.to.0 as i32, w.to.1 as i32],
            unused: [0; 3],
        })
    }
}

fn of_forward(op: &Conv2d, maps: usize) -> Option<Work> {
    let w = &op.window;
    (w.stride <= 2).then(|| Work {
        maps,
        input: w.input,
        channels: op.channels.0,
        windows: vec![Windows {
            output: w.output,
            low: [-(w.padding.top as isize), -(w.padding.left as isize)],
            stride: w.stride,
            taps: [w.kernel.0, w.kernel.1],
            tap: 0,
            tap_steps: [w.kernel.1 as isize, 1],
            to: (0, 0),
        }],
        taps: op.taps(),
        transposed: false,
        size: w.output,
        columns: op.channels.1,
    })
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
    match of_forward(op, maps) {
        Some(work) => work.run(gpu, x, weight, finish, y),
        None => Ok(false),
    }
}

/// The blocks of an image that [`forward`] sums; nothing where it does not.
pub(super) fn blocks(gpu: &Gpu, op: &Conv2d, maps: usize) -> Option<Blocks> {
    of_forward(op, maps)?.blocks(gpu)
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
    let work = Work {
        maps,
        input: w.output,
        channels: op.channels.1,
        windows: op.phases().map(|phase| reaching(op, phase)).collect(),
        taps: op.taps(),
        transposed: true,
        size: w.input,
        columns: op.channels.0,
    };
    let finish = Finish { residual: added, ..Finish::default() };
    work.run(gpu, grad, weight, finish, dx)
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
            tap_steps: [0, 0],
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
        tap_steps: [step(&down) * across as isize, step(&right)],
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

fn of_upsampled((maps, height, width): (usize, usize, usize), (i, o): (usize, usize)) -> Work {
    let phases = [(0, 0), (0, 1), (1, 0), (1, 1)];
    let windows = |to: (usize, usize)| Windows {
        output: (height, width),
        low: [to.0 as isize - 1, to.1 as isize - 1],
        stride: 1,
        taps: [2, 2],
        tap: (3 - to.0) * 4 + 3 - to.1,
        tap_steps: [-8, -2],
        to,
    };
    Work {
        maps,
        input: (height, width),
        channels: i,
        windows: phases.map(windows).into(),
        taps: FOLDED,
        transposed: false,
        size: (2 * height, 2 * width),
        columns: o,
    }
}

/// A nearest ×2 upsampling of x [B,H,W,I], `size` its (B,H,W), and a 3×3 convolution with padding 1, by the folded weight: y [B,2H,2W,O]. Four
/// convolutions of 2×2 taps over the small map, one for each parity of y's rows and columns: 4/9 of the FLOP.
pub(super) fn upsampled(
    gpu: &Gpu,
    size: (usize, usize, usize),
    channels: (usize, usize),
    x: View<bf16>,
    folded: View<bf16>,
    finish: Finish,
    y: ViewMut<bf16>,
) -> Result<bool> {
    of_upsampled(size, channels).run(gpu, x, folded, finish, y)
}

/// The blocks of an image that [`upsampled`] sums; nothing where it does not.
pub(super) fn upsampled_blocks(
    gpu: &Gpu,
    size: (usize, usize, usize),
    channels: (usize, usize),
) -> Option<Blocks> {
    of_upsampled(size, channels).blocks(gpu)
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
    let work = Work {
        maps,
        input: (2 * height, 2 * width),
        channels: o,
        windows: vec![Windows {
            output: (height, width),
            low: [-1, -1],
            stride: 2,
            taps: [4, 4],
            tap: 0,
            tap_steps: [4, 1],
            to: (0, 0),
        }],
        taps: FOLDED,
        transposed: true,
        size: (height, width),
        columns: i,
    };
    let finish = Finish { residual: added, ..Finish::default() };
    work.run(gpu, grad, folded, finish, dx)
}
