//! The optimizer's launches.

use candle_core::Result;

use super::{THREADS, blocks};
use crate::ops::cuda::Gpu;

/// Blocks of the first half of the squared norm.
const NORM_BLOCKS: u32 = 1024;

/// Σ g² of `count` f32 to `total`; `partials` f32 [1024].
fn square_sum(gpu: &Gpu, g: u64, count: usize, partials: u64, total: u64) -> Result<()> {
    launch!(gpu, "optimizer", "square_sum", (NORM_BLOCKS, 1, 1), THREADS, 0; g, count as i64, partials)?;
    launch!(gpu, "optimizer", "square_sum_total", (1, 1, 1), 1024, 0; partials, NORM_BLOCKS as i32, total)
}

/// Places in the optimizer's `control`, f32 [10]: `src/ops/optimizer/kernel.cu` lists them.
pub const CONTROL: usize = 10;
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

/// Addresses of the flat buffers: gradients, parameters, moments, average (f32), and the bf16 copy.
#[derive(Debug, Clone, Copy)]
pub struct Trained {
    pub gradients: u64,
    pub parameters: u64,
    pub first: u64,
    pub second: u64,
    pub average: u64,
    pub half: u64,
}

/// One update of `count` parameters, the first `decayed` with weight decay, as `control` and the gradients' norm say.
pub fn adamw(
    gpu: &Gpu,
    at: &Trained,
    adam: &Adam,
    [decayed, count]: [usize; 2],
    partials: u64,
    control: u64,
) -> Result<()> {
    square_sum(gpu, at.gradients, count, partials, control + 3 * 4)?;
    launch!(gpu, "optimizer", "adam_control", (1, 1, 1), 1, 0; control, adam.beta1, adam.beta2)?;
    launch!(gpu, "optimizer", "adamw_ema", (blocks(count / 4, THREADS), 1, 1), THREADS, 0;
        at.gradients, at.parameters, at.first, at.second, at.average, at.half, control,
        adam.beta1, adam.beta2, adam.eps, adam.weight_decay, decayed as i64, count as i64)
}
