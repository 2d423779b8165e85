//! Convolutions to or from a map of 3 channels or 1 on a GPU (kernel_thin.cu): both maps are bf16.

use candle_core::Result;
use half::bf16;

use super::op::Conv2d;
use crate::ops::cuda::{Gpu, Output, View, ViewMut};

/// Blocks that gather: threads, how many a multiprocessor holds, and pixels of a tile across.
const THREADS: u32 = 256;
const HELD: usize = 2;
const ACROSS: usize = 32;
/// Warps of the other kernels' blocks, each of which takes lines.
const WARPS: usize = 4;
/// Stages of a warp's ring.
const RING: usize = 4 * 2048;
/// Multiprocessors of an H100 or H200, by which work is divided on any card: sums over blocks are
/// the same.
const CARD: usize = 132;
/// Channels of the many that a block of the first and the last kernel takes.
const CHANNELS: usize = 64;
/// Groups of blocks that are summed apart.
const GROUPS: usize = 8;

/// The kernels' geometry, as in kernel_thin.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Geometry {
    images: i32,
    height: i32,
    width: i32,
    channels: i32,
    few_height: i32,
    few_width: i32,
    stride: i32,
    down: i32,
    across: i32,
    low_y: i32,
    low_x: i32,
    flip: i32,
    of_many: i32,
    of_few: i32,
}

/// A convolution that widens its input's few channels, or narrows to few.
#[derive(Debug, Clone, Copy)]
pub(super) struct Thin {
    geometry: Geometry,
    widens: bool,
    few: usize,
    /// Of a window, over the few channels.
    values: usize,
    many_len: usize,
    few_len: usize,
    weights: usize,
}

impl Thin {
    /// None where the kernels do not serve these sizes.
    pub fn new(op: &Conv2d, maps: usize) -> Option<Self> {
        let (w, (inputs, outputs)) = (&op.window, op.channels);
        let widens = inputs < outputs;
        let (few, many) = (inputs.min(outputs), inputs.max(outputs));
        let ((down, across), taps) = (w.kernel, op.taps());
        let (of_few, of_many) = match widens {
            true => (w.input, w.output),
            false => (w.output, w.input),
        };
        let values = taps * few;
        let sizes = maps * of_many.0 * of_many.1;
        let served = matches!(few, 1 | 3)
            && matches!((down, across), (3, 3) | (4, 4))
            && many.is_multiple_of(8)
            && (32..=1024).contains(&many)
            && w.stride <= if widens && few == 3 { 2 } else { 1 }
            && sizes <= i32::MAX as usize;
        if !served {
            return None;
        }
        let int = |x: usize| x as i32;
        // Of the first position's first tap, among the pixels of few channels.
        let low = |padding: usize, kernel: usize| match widens {
            true => -int(padding),
            false => int(padding) - int(kernel - 1),
        };
        let geometry = Geometry {
            images: int(maps),
            height: int(of_many.0),
            width: int(of_many.1),
            channels: int(many),
            few_height: int(of_few.0),
            few_width: int(of_few.1),
            stride: int(w.stride),
            down: int(down),
            across: int(across),
            low_y: low(w.padding.top, down),
            low_x: low(w.padding.left, across),
            flip: (!widens).into(),
            of_many: int(if widens { values } else { taps }),
            of_few: int(if widens { taps } else { many * taps }),
        };
        Some(Self {
            geometry,
            widens,
            few,
            values,
            many_len: sizes * many,
            few_len: maps * of_few.0 * of_few.1 * few,
            weights: values * many,
        })
    }

    /// Whether the input is the map of few channels.
    pub fn widens(&self) -> bool {
        self.widens
    }

    /// Blocks of warps that take lines of the many, `most` a multiprocessor, for 64 channels each.
    fn lines(&self, most: usize) -> [usize; 2] {
        let g = &self.geometry;
        let across = (g.channels as usize).div_ceil(CHANNELS);
        let blocks = (g.images as usize * g.height as usize).div_ceil(WARPS);
        [blocks.min((most * CARD / across).max(1)), across]
    }

    /// The many from the few: y of a layer that widens, with a bias and below zero times `slope`;
    /// dx of one that narrows.
    pub fn spread(
        &self,
        gpu: &Gpu,
        few: View<bf16>,
        weight: View<f32>,
        bias: Option<View<f32>>,
        slope: f32,
        many: ViewMut<bf16>,
    ) -> Result<()> {
        let g = &self.geometry;
        self.check(few.len(), weight.len(), many.len());
        assert!(bias.is_none_or(|bias| bias.len() == g.channels as usize));
        let kernel = format!("thin_spread_{}_{}", self.few, g.down);
        let [blocks, across] = self.lines(if self.values == 48 { 3 } else { 4 });
        let kernel = gpu.kernel("conv2d_thin", &kernel, 0)?;
        let mut launch = gpu.launch(&kernel);
        launch.early();
        launch.structure(g);
        launch.value(few);
        launch.value(weight);
        launch.value(bias);
        launch.value(many);
        launch.value(slope);
        // SAFETY: the arguments are the kernel's, which waits for the one before it; the lengths
        // were checked.
        unsafe { launch.run((blocks as u32, across as u32, 1), 32 * WARPS as u32, 0) }
    }

    /// The few from the many: y of a layer that narrows, with a bias; dx of one that widens.
    pub fn gather(
        &self,
        gpu: &Gpu,
        many: View<bf16>,
        weight: View<f32>,
        bias: Option<View<f32>>,
        few: ViewMut<bf16>,
    ) -> Result<()> {
        let g = &self.geometry;
        self.check(few.len(), weight.len(), many.len());
        assert!(bias.is_none_or(|bias| bias.len() == self.few));
        // Channels in 32s of a warp's product, pixels of a tile down, and positions that the tile
        // sees and a warp takes.
        let stride = g.stride as usize;
        let chunks = if self.few == 3 && g.channels <= 64 {
            2
        } else {
            4
        };
        let down = 16 * stride;
        let seen = |pixels: usize| match stride {
            1 => pixels + g.down as usize - 1,
            _ => (pixels + g.down as usize) / 2,
        };
        let step = 64 / chunks;
        let positions = (seen(ACROSS) * seen(down)).next_multiple_of(step) + 4;
        let weights = (g.channels as usize).div_ceil(32) * self.values.div_ceil(8) * 512;
        let shared = (4 * self.values * positions + weights) as u32;
        let kernel = format!("thin_gather_{}_{}_{stride}_{chunks}", self.few, g.down);
        let (height, width) = (g.few_height as usize, g.few_width as usize);
        let tiles = g.images as usize * width.div_ceil(ACROSS) * height.div_ceil(down);
        let kernel = gpu.kernel("conv2d_thin", &kernel, shared)?;
        let mut launch = gpu.launch(&kernel);
        launch.early();
        launch.structure(g);
        launch.value(many);
        launch.value(weight);
        launch.value(bias);
        launch.value(few);
        // SAFETY: as above.
        unsafe { launch.run((tiles.min(HELD * CARD) as u32, 1, 1), THREADS, shared) }
    }

    /// dL/dw f32 [O,I,kh,kw].
    pub fn weight_gradient(
        &self,
        gpu: &Gpu,
        many: View<bf16>,
        few: View<bf16>,
        dw: ViewMut<f32>,
    ) -> Result<()> {
        let g = &self.geometry;
        self.check(few.len(), dw.len(), many.len());
        // Sixteens of the windows' values, and one for the bias.
        let rows = match (self.values + 1).div_ceil(16) {
            rows @ ..=2 => rows,
            _ => 4,
        };
        let kernel = format!("thin_weight_{}_{}", self.few, g.down);
        let [blocks, across] = self.lines(if rows == 4 { 2 } else { 3 });
        let sums_of_block = rows * 16 * CHANNELS;
        let shared = (WARPS * (RING + self.held())) as u32;
        let mut sums = Output::<f32>::new(gpu.device(), across * blocks * sums_of_block)?;
        let kernel = gpu.kernel("conv2d_thin", &kernel, shared)?;
        let mut launch = gpu.launch(&kernel);
        launch.early();
        launch.structure(g);
        launch.value(many);
        launch.value(few);
        launch.value(sums.view_mut());
        // SAFETY: as above; a block writes its own sums.
        unsafe { launch.run((blocks as u32, across as u32, 1), 32 * WARPS as u32, shared) }?;

        let kernel = gpu.kernel("conv2d_thin", "thin_weight_sum", 0)?;
        let mut launch = gpu.launch(&kernel);
        launch.early();
        launch.structure(g);
        launch.value(sums.view());
        launch.value(blocks as i32);
        launch.value(rows as i32 * 16);
        launch.value(self.few as i32);
        launch.value(dw);
        launch.value(None::<View<f32>>); // the kernel's bias
        launch.value(0i32); // written over what is there
        let grid = (2 * across as u32, (self.values + 1) as u32, 1);
        // SAFETY: as above; rows of channels beyond the last one are not written.
        unsafe { launch.run(grid, 32 * blocks.min(GROUPS) as u32, 0) }
    }

    /// Bytes of the few-channel lines that a warp of the weight gradient holds, as in the kernel.
    fn held(&self) -> usize {
        let (kernel, positions) = (self.geometry.down as usize, 64);
        let values = ((positions + kernel - 1) * self.few).next_multiple_of(32);
        let plane = values.div_ceil(self.few).next_multiple_of(2);
        2 * 2 * (kernel * self.few * plane + 8)
    }

    fn check(&self, few: usize, weights: usize, many: usize) {
        assert_eq!(
            [few, weights, many],
            [self.few_len, self.weights, self.many_len]
        );
    }
}
