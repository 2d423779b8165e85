//! Launches of the kernels by name: sizes to grids, one function an operation. Addresses are device pointers, 0 for none.

use candle_core::{Result, bail};

use crate::config::Config;
use crate::model::generator::swiglu_width;
use crate::ops::cuda::Gpu;

const THREADS: u32 = 256;
/// Rows a block of the AdaLN kernels walks over.
const ADALN_ROWS: usize = 32;
/// Rows a block of `row_sums` adds up.
const SUM_ROWS: usize = 256;
const EPS: f32 = 1e-6;

fn blocks(count: usize, each: u32) -> u32 {
    count.div_ceil(each as usize) as u32
}

/// One launch: `launch!(gpu, op, kernel, grid, threads, shared; arguments…)`, each argument bound so that it outlives the launch;
/// `launch!(early gpu, …)` of a kernel that waits for the one before it.
macro_rules! launch {
    (early $gpu:expr, $($rest:tt)*) => { launch!(@ true, $gpu, $($rest)*) };
    (@ $early:literal, $gpu:expr, $op:literal, $kernel:expr, $grid:expr, $threads:expr, $shared:expr; $($arg:expr),* $(,)?) => {{
        let function = $gpu.kernel($op, $kernel, $shared)?;
        let mut launch = $gpu.launch(&function);
        if $early {
            launch.early();
        }
        $(launch.value($arg);)*
        // SAFETY: the arguments are the kernel's, in type and order; `Activations` and `Flat` sized the buffers for these shapes.
        unsafe { launch.run($grid, $threads, $shared) }
    }};
    ($gpu:expr, $($rest:tt)*) => { launch!(@ false, $gpu, $($rest)*) };
}

mod attention;
mod optimizer;
mod swiglu;

pub use attention::{
    AttentionGradient, Rotation, attention_backward, attention_forward, attention_parts,
};
pub use optimizer::{Adam, CONTROL, CONTROL_SKIPPED, CONTROL_UPDATES, Trained, adamw};
pub use swiglu::{
    swiglu_backward, swiglu_forward, swiglu_in_products, swiglu_product_backward,
    swiglu_product_forward,
};

/// The residual stream before a branch, and what the branch's gradient needs again. Addresses of rows [B·N, C].
#[derive(Debug, Clone, Copy)]
pub struct Residual {
    /// x before, and the branch and gate [B] rows of f32 modulations to add; 0 and 0 where there is none, or it is added already.
    pub x: u64,
    pub branch: u64,
    pub gate: u64,
}

/// Sizes of one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    pub batch: usize,
    pub tokens: usize,
    /// C
    pub width: usize,
    pub heads: usize,
    /// Width of SwiGLU.
    pub hidden: usize,
    /// K
    pub codes: usize,
    /// d
    pub latent: usize,
    /// Width after mixing noise and sum.
    pub mix: usize,
    pub depth: usize,
    /// R of modulations of low rank.
    pub rank: Option<usize>,
    pub classes: usize,
    /// T
    pub steps: usize,
}

impl Sizes {
    pub fn rows(&self) -> usize {
        self.batch * self.tokens
    }

    /// A generator's, of `batch` images a pass.
    ///
    /// Errors: a size that the kernels do not serve, by name.
    pub fn of(config: &Config, classes: usize, batch: usize) -> Result<Self> {
        let (side, generator) = (config.grid(), &config.generator);
        let sizes = Self {
            batch,
            tokens: side * side,
            width: generator.width(),
            heads: generator.heads(),
            hidden: swiglu_width(generator.width()),
            codes: config.quantizer.codebook_size,
            latent: config.tokenizer.embed_dim,
            mix: generator.mix_dim.unwrap_or(config.tokenizer.embed_dim),
            depth: generator.depth,
            rank: generator.adaln_rank,
            classes,
            steps: config.quantizer.steps,
        };
        sizes.check()?;
        Ok(sizes)
    }

    fn check(&self) -> Result<()> {
        let served = [
            (
                "a head's width",
                self.width / self.heads,
                self.width == 64 * self.heads,
                "64",
            ),
            (
                "generator.width",
                self.width,
                self.width <= 2048,
                "at most 2048",
            ),
            (
                "quantizer.codebook_size",
                self.codes,
                self.codes <= 16384 && self.codes.is_multiple_of(8),
                "at most 16384 and a multiple of 8",
            ),
            (
                "tokenizer.embed_dim",
                self.latent,
                self.latent.is_multiple_of(8),
                "a multiple of 8",
            ),
            (
                "generator.mix_dim",
                self.mix,
                self.mix.is_multiple_of(8),
                "a multiple of 8",
            ),
            (
                "generator.adaln_rank",
                self.rank.unwrap_or(0),
                self.rank
                    .is_none_or(|rank| rank > 0 && rank.is_multiple_of(8)),
                "a multiple of 8",
            ),
            ("generator.depth", self.depth, self.depth > 0, "at least 1"),
        ];
        for (name, value, good, expected) in served {
            if !good {
                bail!("the GPU's generator serves {name} of {expected}, found {value}");
            }
        }
        Ok(())
    }

    /// Columns of all modulations of an image: six a block, two at the end.
    pub fn modulations(&self) -> usize {
        (6 * self.depth + 2) * self.width
    }

    /// Columns of the narrow halves of an image's modulations, R a block; 0 where they are of full
    /// rank.
    pub fn narrow(&self) -> usize {
        self.depth * self.rank.unwrap_or(0)
    }

    /// Blocks an image takes in the AdaLN kernels.
    pub fn adaln_blocks(&self) -> usize {
        self.tokens.div_ceil(ADALN_ROWS)
    }

    /// Threads and shared bytes of a block.
    fn adaln_block(&self) -> (u32, u32) {
        let threads = (self.width as u32 / 8).next_multiple_of(32);
        (threads, 2 * threads / 32 * 4 * 4) // two buffers of [warps][4 rows] f32
    }
}

/// x' = x + gate·branch to `sum` (where there is a branch), y = RMSNorm(x')·(1 + scale) + shift, 1/rms to `rstd`.
pub fn adaln_forward(
    gpu: &Gpu,
    s: &Sizes,
    from: Residual,
    [shift, scale]: [u64; 2],
    sum: u64,
    y: u64,
    rstd: u64,
) -> Result<()> {
    // A row's result does not depend on how many a block takes: few, where that fills the card.
    let wanted = s.rows() / (2 * gpu.multiprocessors() as usize);
    let each = (wanted / 4 * 4).clamp(4, ADALN_ROWS);
    let grid = ((s.batch * s.tokens.div_ceil(each)) as u32, 1, 1);
    let (threads, shared) = s.adaln_block();
    launch!(early gpu, "adaln", "adaln_forward", grid, threads, shared;
        from.x, from.branch, from.gate, shift, scale, sum, y, rstd,
        s.tokens as i32, s.width as i32, s.modulations() as i32, EPS, each as i32)
}

/// What goes into [`adaln_backward`] and comes out of it.
#[derive(Debug, Clone, Copy)]
pub struct AdalnGradient {
    /// Gradient of x' from further on, 0 for none; gradient of y.
    pub dsum: u64,
    pub dy: u64,
    /// x' and 1/rms of the forward pass; with `add` x, to which the branch is added once more.
    pub x: u64,
    pub add: bool,
    pub rstd: u64,
    pub scale: u64,
    /// The branch that was added, and its gate; 0 for none.
    pub branch: u64,
    pub gate: u64,
    /// Out: gradients of x' before the sum and of the branch.
    pub dx: u64,
    pub dbranch: u64,
    /// Scratch f32 [B·blocks, 3, C].
    pub partials: u64,
    /// Out, bf16, with the modulations' stride; 0 for none.
    pub dshift: u64,
    pub dscale: u64,
    pub dgate: u64,
}

pub fn adaln_backward(gpu: &Gpu, s: &Sizes, g: &AdalnGradient) -> Result<()> {
    let grid = ((s.batch * s.adaln_blocks()) as u32, 1, 1);
    let (threads, shared) = s.adaln_block();
    let (n, c, stride) = (s.tokens as i32, s.width as i32, s.modulations() as i32);
    launch!(gpu, "adaln", "adaln_backward", grid, threads, shared;
        g.dsum, g.dy, g.x, g.rstd, g.branch, g.gate, g.scale, g.dx, g.dbranch, g.partials,
        n, c, stride, ADALN_ROWS as i32, i32::from(g.add))?;
    let grid = (blocks(s.width, THREADS), s.batch as u32, 1);
    launch!(gpu, "adaln", "adaln_sum", grid, THREADS, 0;
        g.partials, g.dshift, g.dscale, g.dgate, s.adaln_blocks() as i32, c, stride)
}

/// Loss f32 and hit u32 of every row; the logits become their gradient times `scale`.
pub fn cross_entropy(
    gpu: &Gpu,
    s: &Sizes,
    logits: u64,
    targets: u64,
    loss: u64,
    hits: u64,
    scale: f32,
) -> Result<()> {
    let kernel = match s.codes {
        0..=2048 => "cross_entropy_1",
        2049..=4096 => "cross_entropy_2",
        4097..=8192 => "cross_entropy_4",
        _ => "cross_entropy_8",
    };
    launch!(gpu, "cross_entropy", kernel, (s.rows() as u32, 1, 1), THREADS, 0;
        logits, targets, loss, hits, s.codes as i32, scale, 1i32)
}

/// [noise | sum] f32 rows of d to bf16 rows of 2d.
pub fn join_inputs(gpu: &Gpu, s: &Sizes, noise: u64, sum: u64, out: u64) -> Result<()> {
    let grid = (blocks(s.rows() * s.latent / 4, THREADS), 1, 1);
    launch!(gpu, "condition", "join_inputs", grid, THREADS, 0; noise, sum, out, s.rows() as i64, s.latent as i32)
}

pub fn time_features(gpu: &Gpu, s: &Sizes, t: u64, out: u64) -> Result<()> {
    launch!(gpu, "condition", "time_features", (s.batch as u32, 1, 1), 128, 0; t, out)
}

/// y = silu(x) of [B, C], f32 to bf16.
pub fn silu(gpu: &Gpu, s: &Sizes, x: u64, y: u64) -> Result<()> {
    let count = s.batch * s.width;
    launch!(gpu, "condition", "silu_f32", (blocks(count, THREADS), 1, 1), THREADS, 0; x, y, count as i32)
}

/// dx = dy·silu'(x) of [B, C], dy and x f32, dx bf16.
pub fn silu_gradient(gpu: &Gpu, s: &Sizes, dy: u64, x: u64, dx: u64) -> Result<()> {
    let count = s.batch * s.width;
    launch!(gpu, "condition", "silu_gradient", (blocks(count, THREADS), 1, 1), THREADS, 0; dy, x, dx, count as i32)
}

/// sum = time + embedding[label] and its SiLU.
pub fn condition(
    gpu: &Gpu,
    s: &Sizes,
    time: u64,
    embedding: u64,
    labels: u64,
    sum: u64,
    out: u64,
) -> Result<()> {
    let grid = (blocks(s.width, THREADS), s.batch as u32, 1);
    launch!(gpu, "condition", "condition_forward", grid, THREADS, 0;
        time, embedding, labels, sum, out, s.width as i32)
}

pub fn embedding_gradient(
    gpu: &Gpu,
    s: &Sizes,
    d: u64,
    labels: u64,
    out: u64,
    accumulate: bool,
) -> Result<()> {
    launch!(gpu, "condition", "embedding_gradient", (s.classes as u32 + 1, 1, 1), THREADS, 0;
        d, labels, out, s.batch as i32, s.width as i32, i32::from(accumulate))
}

pub fn add_position(gpu: &Gpu, s: &Sizes, x: u64, position: u64) -> Result<()> {
    let (total, count) = (s.rows() * s.width, s.tokens * s.width);
    launch!(gpu, "condition", "add_position", (blocks(total / 8, THREADS), 1, 1), THREADS, 0;
        x, position, total as i64, count as i32)
}

/// Dropout in a pass: as [`Dropout`](crate::model::dropout::Dropout), the examples' numbers u64 [B]
/// at an address.
#[derive(Debug, Clone, Copy)]
pub struct DropoutAt {
    pub probability: f64,
    pub seed: u64,
    pub indices: u64,
}

/// Drops elements of a block's branch or of its gradient, rows [B·N, C], in place.
pub fn dropout(gpu: &Gpu, s: &Sizes, x: u64, block: usize, at: DropoutAt) -> Result<()> {
    let (total, count) = (s.rows() * s.width, s.tokens * s.width);
    let [low, high] = [at.seed as u32, (at.seed >> 32) as u32];
    let scale = 1.0 / (1.0 - at.probability);
    launch!(gpu, "condition", "dropout", (blocks(total / 8, THREADS), 1, 1), THREADS, 0;
        x, at.indices, low, high, block as i32, total as i64, count as i32, at.probability as f32, scale as f32)
}

/// Elements of scratch that [`row_sums`] takes.
pub fn row_sums_scratch(rows: usize, columns: usize) -> usize {
    rows.div_ceil(SUM_ROWS) * columns
}

/// out f32 [columns] (+)= Σ over rows of x bf16 [rows, columns].
pub fn row_sums(
    gpu: &Gpu,
    x: u64,
    rows: usize,
    columns: usize,
    scratch: u64,
    out: u64,
    accumulate: bool,
) -> Result<()> {
    let (across, parts) = (blocks(columns, THREADS), rows.div_ceil(SUM_ROWS));
    launch!(gpu, "condition", "row_sums", (across, parts as u32, 1), THREADS, 0;
        x, scratch, rows as i64, columns as i32, SUM_ROWS as i32)?;
    launch!(gpu, "condition", "row_sums_total", (across, 1, 1), THREADS, 0;
        scratch, out, parts as i32, columns as i32, i32::from(accumulate))
}

/// Adds a batch's losses and hits to the tally f32 [T, 3] of tokens, loss and hits.
pub fn tally(
    gpu: &Gpu,
    s: &Sizes,
    loss: u64,
    hits: u64,
    t: u64,
    sums: u64,
    tally: u64,
) -> Result<()> {
    launch!(gpu, "condition", "image_losses", (s.batch as u32, 1, 1), THREADS, 0; loss, hits, sums, s.tokens as i32)?;
    launch!(gpu, "condition", "tally", (1, 1, 1), (s.steps as u32).next_multiple_of(32), 0;
        sums, t, tally, s.batch as i32, s.tokens as i32, s.steps as i32)
}
