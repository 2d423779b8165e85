//! The launches of `kernel.cu`.

use candle_core::Result;
use half::bf16;

use crate::ops::cuda::{Gpu, View, ViewMut, launch};

const THREADS: u32 = 256;
/// Rows a block of `row_sums` adds up.
const SUM_ROWS: usize = 256;
/// cos and sin of an image's t.
pub const TIME_FEATURES: usize = 256;

fn blocks(count: usize) -> u32 {
    count.div_ceil(THREADS as usize) as u32
}

/// [noise | sum] f32 rows of d to bf16 rows of 2d; sizes [rows, d].
pub fn join_inputs(
    gpu: &Gpu,
    [rows, d]: [usize; 2],
    noise: View<f32>,
    sum: View<f32>,
    out: ViewMut<bf16>,
) -> Result<()> {
    let grid = (blocks(rows * d / 4), 1, 1);
    // SAFETY: the arguments are the kernel's, and views of the sizes that it walks over.
    unsafe {
        launch!(gpu, "condition", "join_inputs", grid, THREADS, 0;
            noise.first(rows * d), sum.first(rows * d), out.first(2 * rows * d), rows as i64,
            d as i32)
    }
}

/// t [batch] to its cosines and sines bf16 [batch, 256].
pub fn time_features(gpu: &Gpu, batch: usize, t: View<u32>, out: ViewMut<bf16>) -> Result<()> {
    // SAFETY: as above.
    unsafe {
        launch!(gpu, "condition", "time_features", (batch as u32, 1, 1), 128, 0;
            t.first(batch), out.first(batch * TIME_FEATURES))
    }
}

/// y = silu(x) of `count` elements, f32 to bf16.
pub fn silu(gpu: &Gpu, count: usize, x: View<f32>, y: ViewMut<bf16>) -> Result<()> {
    // SAFETY: as above.
    unsafe {
        launch!(gpu, "condition", "silu_f32", (blocks(count), 1, 1), THREADS, 0;
            x.first(count), y.first(count), count as i32)
    }
}

/// dx = dy·silu'(x) of `count` elements, dy and x f32, dx bf16.
pub fn silu_gradient(
    gpu: &Gpu,
    count: usize,
    dy: View<f32>,
    x: View<f32>,
    dx: ViewMut<bf16>,
) -> Result<()> {
    // SAFETY: as above.
    unsafe {
        launch!(gpu, "condition", "silu_gradient", (blocks(count), 1, 1), THREADS, 0;
            dy.first(count), x.first(count), dx.first(count), count as i32)
    }
}

/// sum = time + embedding[label] [batch, C] and its SiLU; labels up to and with `classes`, the
/// empty one. Sizes [batch, C, classes].
#[allow(clippy::too_many_arguments)] // sizes, three inputs, two outputs
pub fn condition(
    gpu: &Gpu,
    [batch, c, classes]: [usize; 3],
    time: View<f32>,
    embedding: View<f32>,
    labels: View<u32>,
    sum: ViewMut<f32>,
    out: ViewMut<bf16>,
) -> Result<()> {
    let grid = (blocks(c), batch as u32, 1);
    // SAFETY: as above; the caller's labels are at most `classes`.
    unsafe {
        launch!(gpu, "condition", "condition_forward", grid, THREADS, 0;
            time.first(batch * c), embedding.first((classes + 1) * c), labels.first(batch),
            sum.first(batch * c), out.first(batch * c), c as i32)
    }
}

/// The gradient of the embedding f32 [classes + 1, C] from d [batch, C], added to what is there if
/// `accumulate`. Sizes [batch, C, classes].
pub fn embedding_gradient(
    gpu: &Gpu,
    [batch, c, classes]: [usize; 3],
    d: View<bf16>,
    labels: View<u32>,
    out: ViewMut<f32>,
    accumulate: bool,
) -> Result<()> {
    // SAFETY: as above.
    unsafe {
        launch!(gpu, "condition", "embedding_gradient", (classes as u32 + 1, 1, 1), THREADS, 0;
            d.first(batch * c), labels.first(batch), out.first((classes + 1) * c), batch as i32,
            c as i32, i32::from(accumulate))
    }
}

/// x [batch, N, C] + position [N, C], in place.
pub fn add_position(
    gpu: &Gpu,
    [batch, tokens, c]: [usize; 3],
    x: ViewMut<bf16>,
    position: View<bf16>,
) -> Result<()> {
    let (total, count) = (batch * tokens * c, tokens * c);
    // SAFETY: as above.
    unsafe {
        launch!(gpu, "condition", "add_position", (blocks(total / 8), 1, 1), THREADS, 0;
            x.first(total), position.first(count), total as i64, count as i32)
    }
}

/// Dropout in a pass, as [`Dropout`](crate::ops::Dropout); the examples' numbers [B] on the GPU.
#[derive(Clone, Copy)]
pub struct DropoutOnGpu<'a> {
    pub probability: f64,
    pub seed: u64,
    pub indices: View<'a, u64>,
}

/// Drops elements of a block's branch or of its gradient [batch, N, C], in place.
pub fn dropout(
    gpu: &Gpu,
    [batch, tokens, c]: [usize; 3],
    x: ViewMut<bf16>,
    block: usize,
    by: DropoutOnGpu,
) -> Result<()> {
    let (total, count) = (batch * tokens * c, tokens * c);
    let [low, high] = [by.seed as u32, (by.seed >> 32) as u32];
    let scale = 1.0 / (1.0 - by.probability);
    // SAFETY: as above.
    unsafe {
        launch!(gpu, "condition", "dropout", (blocks(total / 8), 1, 1), THREADS, 0;
            x.first(total), by.indices.first(batch), low, high, block as i32, total as i64,
            count as i32, by.probability as f32, scale as f32)
    }
}

/// Elements of scratch that [`row_sums`] takes.
pub fn row_sums_scratch(rows: usize, columns: usize) -> usize {
    rows.div_ceil(SUM_ROWS) * columns
}

/// out f32 [columns] = Σ over rows of x bf16 [rows, columns], added to what is there if
/// `accumulate`.
pub fn row_sums(
    gpu: &Gpu,
    [rows, columns]: [usize; 2],
    x: View<bf16>,
    scratch: ViewMut<f32>,
    out: ViewMut<f32>,
    accumulate: bool,
) -> Result<()> {
    let (across, parts) = (blocks(columns), rows.div_ceil(SUM_ROWS));
    let mut scratch = scratch.first(row_sums_scratch(rows, columns));
    // SAFETY: as above.
    unsafe {
        launch!(gpu, "condition", "row_sums", (across, parts as u32, 1), THREADS, 0;
            x.first(rows * columns), scratch.again(), rows as i64, columns as i32,
            SUM_ROWS as i32)?;
        launch!(gpu, "condition", "row_sums_total", (across, 1, 1), THREADS, 0;
            scratch.read(), out.first(columns), parts as i32, columns as i32,
            i32::from(accumulate))
    }
}

/// Adds a batch's losses and hits [batch, N] to the tally f32 [T, 3] of tokens, loss and hits;
/// `sums` is scratch [batch, 2]. Sizes [batch, N, T].
#[allow(clippy::too_many_arguments)] // sizes, three inputs, scratch and the tally
pub fn tally(
    gpu: &Gpu,
    [batch, tokens, steps]: [usize; 3],
    loss: View<f32>,
    hits: View<u32>,
    t: View<u32>,
    sums: ViewMut<f32>,
    tally: ViewMut<f32>,
) -> Result<()> {
    let mut sums = sums.first(2 * batch);
    let threads = (steps as u32).next_multiple_of(32);
    // SAFETY: as above.
    unsafe {
        launch!(gpu, "condition", "image_losses", (batch as u32, 1, 1), THREADS, 0;
            loss.first(batch * tokens), hits.first(batch * tokens), sums.again(), tokens as i32)?;
        launch!(gpu, "condition", "tally", (1, 1, 1), threads, 0;
            sums.read(), t.first(batch), tally.first(3 * steps), batch as i32, tokens as i32,
            steps as i32)
    }
}
