//! AdamW on a GPU for parameters that lie in one buffer, without synchronising with the host: the
//! norm, clipping, the update, the moving average and the bf16 copy (`kernel.cu`).

use candle_core::Result;
use half::bf16;

use crate::ops::cuda::{Gpu, View, ViewMut, launch};

const THREADS: u32 = 256;
/// Blocks of the first half of the squared norm.
const NORM_BLOCKS: u32 = 1024;

/// Elements of the partial sums of the squared norm.
pub const PARTIALS: usize = NORM_BLOCKS as usize;

/// Places in the optimizer's `control`, f32 [10]: `src/ops/optimizer/kernel.cu` lists them.
pub const CONTROL: usize = 10;
const CONTROL_SQUARE: usize = 3;
pub const CONTROL_UPDATES: usize = 4;
pub const CONTROL_SKIPPED: usize = 5;

/// AdamW's constants.
#[derive(Debug, Clone, Copy)]
pub struct Adam {
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    pub weight_decay: f32,
}

/// The flat buffers: gradients, parameters, moments, moving average, and the bf16 copy.
pub struct FlatTrained<'a> {
    pub gradients: View<'a, f32>,
    pub parameters: ViewMut<'a, f32>,
    pub first: ViewMut<'a, f32>,
    pub second: ViewMut<'a, f32>,
    pub average: ViewMut<'a, f32>,
    pub bf16_weights: ViewMut<'a, bf16>,
}

/// Σ g² to `total`; `partials` f32 [[`PARTIALS`]].
fn square_sum(
    gpu: &Gpu,
    g: View<f32>,
    partials: &mut ViewMut<f32>,
    total: ViewMut<f32>,
) -> Result<()> {
    // SAFETY: the arguments are the kernels', and views of the sizes that they walk over.
    unsafe {
        launch!(gpu, "optimizer", "square_sum", (NORM_BLOCKS, 1, 1), THREADS, 0;
            g, g.len() as i64, partials.again())?;
        launch!(gpu, "optimizer", "square_sum_total", (1, 1, 1), 1024, 0;
            partials.read(), NORM_BLOCKS as i32, total.first(1))
    }
}

/// One update of `count` parameters, the first `decayed` with weight decay, as `control` and the
/// gradients' norm say; count is a multiple of 4.
pub fn adamw(
    gpu: &Gpu,
    at: FlatTrained,
    adam: &Adam,
    [decayed, count]: [usize; 2],
    partials: ViewMut<f32>,
    control: ViewMut<f32>,
) -> Result<()> {
    let gradients = at.gradients.first(count);
    let (mut partials, mut control) = (partials.first(PARTIALS), control.first(CONTROL));
    square_sum(
        gpu,
        gradients,
        &mut partials,
        control.part(CONTROL_SQUARE, 1),
    )?;
    let grid = ((count / 4).div_ceil(THREADS as usize) as u32, 1, 1);
    // SAFETY: the arguments are the kernels', and views of the sizes that they walk over.
    unsafe {
        launch!(gpu, "optimizer", "adam_control", (1, 1, 1), 1, 0;
            control.again(), adam.beta1, adam.beta2)?;
        launch!(gpu, "optimizer", "adamw_ema", grid, THREADS, 0;
            gradients, at.parameters.first(count), at.first.first(count), at.second.first(count),
            at.average.first(count), at.bf16_weights.first(count), control.read(),
            adam.beta1, adam.beta2, adam.eps, adam.weight_decay, decayed as i64, count as i64)
    }
}
