//! Hopper's own kernels (kernel_sm90.cu): convolutions of bf16 maps by TMA's im2col mode, forward
//! and the gradient of the input.
//!
//! Maps are [B,H,W,C] with C a multiple of 8 from 32 on, weights [O,kh,kw,I] in bf16, sums in f32.
//! Functions return false for what the kernels do not serve: other cards, other channels, strides
//! beyond 2, windows that reach further than a tensor map does.

use candle_core::Result;
use half::{bf16, f16};

use super::hopper_cut::{CUTS, Cut, PAIR};
use crate::ops::channel_norm::cuda::Tiles;
use crate::ops::channel_norm::left;
use crate::ops::cuda::{Element, Gpu, Output, TensorMap, View, ViewMut};
use crate::ops::product::cuda::STAGE;

mod convolution;

pub(super) use convolution::{forward, input_gradient, of_forward, of_input_gradient};

/// Fewest channels that the kernels are for.
pub(super) const NARROWEST: usize = 32;
/// Offsets from a map's corners that a tensor map takes.
const CORNER: std::ops::RangeInclusive<i32> = -128..=127;
/// Positions whose sums lie together.
const SUMMED: usize = 64;
/// A tensor map inside a launch's argument, which is laid out as the kernel's: the driver's own
/// type asks for another alignment.
type Words = [u64; 16];

/// One convolution of a launch (`Phase` in windows_sm90.cuh).
#[derive(Clone, Copy)]
#[repr(C)]
struct Phase {
    x: Words,
    y: Words,
    added: Words,
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
#[repr(C)]
struct Convolution {
    weight: Words,
    y: Words,
    added: Words,
    phases: [Phase; 4],
    blocks: i32,
    columns: i32,
    stride: i32,
    height: i32,
    width: i32,
    step: i32,
    slope: f32,
    gates: i32,
    bias: u64,
    to: u64,
    add: u64,
    sums: u64,
}

const _: () = assert!(size_of::<Phase>() == 448 && size_of::<Convolution>() == 2240);

/// What maps and weights are of: two bytes. For f16 there are the kernels of a convolution forward,
/// with a bias, a ReLU and a map that is added.
pub(super) trait Half: Element + Default {
    fn file(cut: &Cut) -> &'static str;
}

impl Half for bf16 {
    fn file(cut: &Cut) -> &'static str {
        cut.file
    }
}

impl Half for f16 {
    fn file(cut: &Cut) -> &'static str {
        cut.file_f16
    }
}

/// What a result passes through before it is rounded, and what is kept of it.
#[derive(Clone, Copy, Default)]
pub(super) struct Finish<'a, T = bf16> {
    /// f32 [O].
    pub bias: Option<View<'a, f32>>,
    /// As y.
    pub residual: Option<View<'a, T>>,
    /// Of a leaky ReLU after both, 0 for a ReLU.
    pub slope: Option<f32>,
    /// For a gradient, the map as y that a leaky ReLU of this slope made: y is multiplied by the
    /// slope where the map is not positive. In place of residual and slope.
    pub gate: Option<(View<'a, T>, f32)>,
    /// Whether to leave a norm's tiles of the result: of every 64 positions of an image, in a fixed
    /// order. Only if the kernel that is fastest without them can.
    pub tiles: bool,
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
pub(super) struct Windows {
    /// Of them in a map, down and across.
    pub output: (usize, usize),
    pub low: [isize; 2],
    pub stride: usize,
    pub taps: [usize; 2],
    /// The first one's of the weights, and how far to the next one down and across.
    pub tap: usize,
    pub tap_steps: [isize; 2],
    pub to: (usize, usize),
}

impl Windows {
    /// Places that are counted of a line.
    fn pitch(&self, cut: &Cut) -> usize {
        self.output.1
            + if cut.pads(self.output.1) {
                self.taps[1] - 1
            } else {
                0
            }
    }

    /// Windows of a line that the map is made for: with those that come after the last place where
    /// several taps are one copy.
    fn reached(&self, cut: &Cut) -> usize {
        self.output.1 + if cut.taps > 1 { self.taps[1] - 1 } else { 0 }
    }

    /// How far the last window lies from the map's last position, down and across.
    fn high(&self, size: (usize, usize), cut: &Cut) -> [i32; 2] {
        let last = [self.output.0, self.reached(cut)].map(|n| ((n - 1) * self.stride) as i32);
        let size = [size.0 as i32, size.1 as i32];
        std::array::from_fn(|i| self.low[i] as i32 + last[i] - (size[i] - 1))
    }
}

/// How results reach y (`To` in windows_sm90.cuh).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum To {
    Rows,
    Lines,
    Places,
}

/// What is computed: windows over maps to maps of `columns` channels.
pub(super) struct Work {
    pub maps: usize,
    /// Of the maps that the windows move over.
    pub input: (usize, usize),
    pub channels: usize,
    /// One, or one for each parity of y's rows and columns.
    pub windows: Vec<Windows>,
    pub taps: usize,
    /// The weights are bf16 [outer, taps, inner]: the sums run over `outer`, otherwise over
    /// `inner`.
    pub transposed: bool,
    /// Of y.
    pub size: (usize, usize),
    pub columns: usize,
}

impl Work {
    fn scattered(&self) -> bool {
        self.windows.len() > 1
    }

    fn positions(&self) -> usize {
        self.maps * self.size.0 * self.size.1
    }

    /// The cut that is expected to be fastest of those that serve, and how its results reach y.
    fn choose(&self, gpu: &Gpu) -> Option<(&'static Cut, To)> {
        let served = |channels: usize| channels >= NARROWEST && channels.is_multiple_of(8);
        let input = self.maps * self.input.0 * self.input.1;
        // A cut by lines counts up to six more places a line.
        let counted = input.max(self.positions()) * 8 <= i32::MAX as usize;
        if !gpu.is_hopper() || !served(self.channels) || !served(self.columns) || !counted {
            return None;
        }
        let serving = CUTS
            .iter()
            .filter_map(|cut| Some((cut, self.reaching(cut)?)));
        let time = |cut: &Cut| -> f64 {
            // Channels in whole blocks of 64, or 64s and a half.
            let block = if cut.half { STAGE / 2 } else { STAGE };
            let channels = self.channels.next_multiple_of(block);
            let of = |w: &Windows| {
                let tiles = cut.tiles(self.maps * w.output.0 * w.pitch(cut), self.columns);
                (tiles, tiles * w.taps[0] * w.taps[1] * channels)
            };
            let add = |a: (usize, usize), b: (usize, usize)| (a.0 + b.0, a.1 + b.1);
            let (tiles, terms) = self.windows.iter().map(of).fold((0, 0), add);
            cut.time(
                gpu.multiprocessors() as usize,
                tiles,
                terms as f64 / tiles as f64,
            )
        };
        serving.min_by(|a, b| time(a.0).total_cmp(&time(b.0)))
    }

    /// How a cut's results reach y, if it serves.
    pub fn reaching(&self, cut: &Cut) -> Option<To> {
        let within = |w: &Windows| {
            let low = w.low.map(|x| x as i32);
            let mut corners = low.into_iter().chain(w.high(self.input, cut));
            corners.all(|x| CORNER.contains(&x))
        };
        let halves = (1..=STAGE / 2).contains(&(self.channels % STAGE));
        if !self.windows.iter().all(within) || (cut.half && !halves) {
            return None;
        }
        let first = &self.windows[0];
        if cut.taps > 1 && (self.scattered() || first.stride > 1 || first.taps[1] != cut.taps) {
            return None;
        }
        let has = &cut.kernels;
        let lines = |w: &Windows| cut.lines(w.output).is_some();
        if has.rows && !self.scattered() && !cut.pads(first.output.1) {
            Some(To::Rows)
        } else if has.lines && self.scattered() && self.windows.iter().all(lines) {
            Some(To::Lines)
        } else {
            has.places.then_some(To::Places)
        }
    }

    /// Whether a cut whose results reach y so can leave tiles of it.
    fn leaves_tiles(&self, cut: &Cut, to: To) -> bool {
        let summed = |w: &Windows| (w.output.0 * w.output.1).is_multiple_of(SUMMED);
        let has = match to {
            To::Rows => cut.kernels.sums[0],
            To::Lines => cut.kernels.sums[1],
            To::Places => false,
        };
        has && !self.transposed && self.windows.iter().all(summed)
    }

    pub fn run<T: Half>(
        &self,
        gpu: &Gpu,
        x: View<T>,
        weight: View<T>,
        finish: Finish<T>,
        y: ViewMut<T>,
    ) -> Result<bool> {
        match self.choose(gpu) {
            Some(by) => self.run_by(gpu, by, x, weight, finish, y).map(|()| true),
            None => Ok(false),
        }
    }

    /// Runs by a cut that serves, and as its results reach y.
    pub fn run_by<T: Half>(
        &self,
        gpu: &Gpu,
        (cut, to): (&Cut, To),
        x: View<T>,
        weight: View<T>,
        finish: Finish<T>,
        y: ViewMut<T>,
    ) -> Result<()> {
        let (columns, channels, positions) = (self.columns, self.channels, self.positions());
        let mut sums = match finish.tiles && self.leaves_tiles(cut, to) {
            true => Some(Output::<f32>::new(
                gpu.device(),
                positions / SUMMED * 2 * columns,
            )?),
            false => None,
        };
        assert_eq!(x.len(), self.maps * self.input.0 * self.input.1 * channels);
        assert_eq!(weight.len(), columns * self.taps * channels);
        assert_eq!(y.len(), positions * columns);
        assert!(finish.gate.is_none() || finish.residual.is_none() && finish.slope.is_none());
        let beside = finish.residual.or(finish.gate.map(|(map, _)| map));
        assert!(beside.is_none_or(|beside| beside.len() == y.len()));
        assert!(finish.bias.is_none_or(|b| b.len() == columns));

        let x = Map {
            address: x.address(),
            maps: self.maps,
            size: self.input,
            channels,
        };
        let result = Map {
            address: y.address(),
            maps: self.maps,
            size: self.size,
            channels: columns,
        };
        let added = Map {
            address: beside.map_or(result.address, |beside| beside.address()),
            ..result
        };
        let phases = self
            .windows
            .iter()
            .map(|w| self.phase(cut, to, w, [x, result, added]))
            .collect::<Result<Vec<_>>>()?;
        let tiles: usize = phases
            .iter()
            .map(|p| cut.tiles(p.positions as usize, columns))
            .sum();
        let none = Phase {
            positions: 0,
            ..phases[0]
        };
        let (outer, inner) = match self.transposed {
            true => (channels, columns),
            false => (columns, channels),
        };
        let [outputs, inputs] = cut.weights(self.transposed);
        let sizes = [outer, self.taps, inner];
        let convolution = Convolution {
            weight: TensorMap::swizzled(weight.address(), sizes, [outputs, 1, inputs])?.words(),
            y: self.rows(cut, &result)?.words(),
            added: self.rows(cut, &added)?.words(),
            phases: std::array::from_fn(|i| phases.get(i).copied().unwrap_or(none)),
            blocks: channels.div_ceil(STAGE) as i32,
            columns: columns as i32,
            stride: self.windows[0].stride as i32,
            height: self.size.0 as i32,
            width: self.size.1 as i32,
            step: if self.scattered() { 2 } else { 1 },
            slope: finish
                .slope
                .or(finish.gate.map(|(_, slope)| slope))
                .unwrap_or(1.0),
            gates: finish.gate.is_some().into(),
            bias: finish.bias.map_or(0, |bias| bias.address()),
            to: y.address(),
            add: beside.map_or(0, |beside| beside.address()),
            sums: sums.as_mut().map_or(0, |sums| sums.view_mut().address()),
        };
        let parts = [
            (self.transposed, "_transposed"),
            (to == To::Lines, "_lines"),
            (to == To::Places && cut.split == 0, "_places"),
            (sums.is_some(), "_sums"),
        ];
        let parts = parts.iter().filter(|(has, _)| *has).map(|(_, part)| *part);
        let name: String = ["conv2d_", cut.name].into_iter().chain(parts).collect();
        let shared = cut.shared(self.transposed, sums.is_some());
        let kernel = gpu.kernel(T::file(cut), &name, shared)?;
        let mut launch = gpu.launch(&kernel);
        launch.early();
        launch.structure(&convolution);
        let most = match cut.split {
            0 => gpu.multiprocessors() as usize / PAIR, // each takes tile after tile
            _ => tiles,
        };
        let blocks = (tiles.min(most) * cut.cluster()) as u32;
        // SAFETY: the argument is the kernel's, which waits; the views' lengths were compared with
        // the sizes.
        unsafe { launch.run((blocks, 1, 1), cut.threads(), shared)? };
        if let Some(values) = sums {
            left::leave(Some(Tiles {
                values,
                rows: SUMMED,
            }));
        }
        Ok(())
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
            x: TensorMap::im2col(x.address, sizes, low, high, w.stride, cut.copied())?.words(),
            y: places(&y)?.words(),
            added: places(&added)?.words(),
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
