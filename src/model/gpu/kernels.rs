//! Launches of the kernels by name: sizes to grids, one function an operation. Addresses are device pointers, 0 for none.

use candle_core::{Result, bail};

use crate::config::Config;
use crate::model::generator::swiglu_width;
use crate::ops::cuda::{Gpu, TensorMap};

const THREADS: u32 = 256;
/// Rows a block of the AdaLN kernels walks over.
const ADALN_ROWS: usize = 32;
/// Rows a block of `row_sums` adds up.
const SUM_ROWS: usize = 256;
/// Blocks of the first half of the squared norm.
const NORM_BLOCKS: u32 = 1024;
const EPS: f32 = 1e-6;

fn blocks(count: usize, each: u32) -> u32 {
    count.div_ceil(each as usize) as u32
}

/// One launch: `launch!(gpu, op, kernel, grid, threads, shared; arguments…)`, each argument bound so that it outlives the launch.
macro_rules! launch {
    ($gpu:expr, $op:literal, $kernel:expr, $grid:expr, $threads:expr, $shared:expr; $($arg:expr),* $(,)?) => {{
        let function = $gpu.kernel($op, $kernel, $shared)?;
        let mut launch = $gpu.launch(&function);
        $(launch.value($arg);)*
        // SAFETY: the arguments are the kernel's, in type and order; `Activations` and `Flat` sized the buffers for these shapes.
        unsafe { launch.run($grid, $threads, $shared) }
    }};
}

/// The residual stream before a branch, and what the branch's gradient needs again. Addresses of rows [B·N, C].
#[derive(Debug, Clone, Copy)]
pub struct Residual {
    /// x before, and the branch and gate [B] rows of f32 modulations to add; 0 and 0 for the first.
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
    launch!(gpu, "adaln", "adaln_forward", grid, threads, shared;
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

/// cos, sin f32 [N, 32], 0 and 0 for no rotation.
#[derive(Debug, Clone, Copy)]
pub struct Rotation {
    pub cos: u64,
    pub sin: u64,
}

/// 1/√64, in the exponent's base where the kernel takes powers of two.
const SCALE: f32 = 0.125;

pub fn attention_forward(
    gpu: &Gpu,
    s: &Sizes,
    rope: Rotation,
    qkv: u64,
    out: u64,
    lse: u64,
) -> Result<()> {
    let (n, heads, units) = (s.tokens as i32, s.heads as i32, (s.batch * s.heads) as i32);
    let scale = SCALE * std::f32::consts::LOG2_E;
    if gpu.is_hopper() && s.tokens <= 256 {
        let grid = (blocks(s.tokens, 64), s.heads as u32, s.batch as u32);
        if grid.0 * grid.1 * grid.2 <= gpu.multiprocessors() {
            let shared = 9 * 64 * 128 + 2 * 4 * 64 * 4;
            return launch!(gpu, "attention_few_sm90", "attention_forward_few", grid, 512, shared;
                qkv, rope.cos, rope.sin, out, lse, n, heads, scale);
        }
        let (kernel, heads_a_block) = match s.tokens {
            ..=64 => ("attention_forward_64", 4),
            65..=128 => ("attention_forward_128", 2),
            _ => ("attention_forward_256", 1),
        };
        let grid = (units as u32)
            .div_ceil(heads_a_block)
            .min(gpu.multiprocessors());
        return launch!(gpu, "attention_sm90", kernel, (grid, 1, 1), 512, 7 * 256 * 128 + 16;
            qkv, rope.cos, rope.sin, out, lse, n, heads, units, scale);
    }
    let grid = (blocks(s.tokens, 128), s.heads as u32, s.batch as u32);
    launch!(gpu, "attention", "attention_forward", grid, 128, 0;
        qkv, rope.cos, rope.sin, out, lse, n, heads, scale)
}

/// Key blocks of the general backward kernel: beyond one, dQ is added up from parts f32 [blocks, B·N, C].
pub fn attention_parts(tokens: usize) -> usize {
    tokens.div_ceil(256)
}

#[derive(Debug, Clone, Copy)]
pub struct AttentionGradient {
    pub qkv: u64,
    pub out: u64,
    pub dout: u64,
    pub lse: u64,
    pub dqkv: u64,
    /// Scratch where there are more than 256 tokens.
    pub parts: u64,
}

pub fn attention_backward(
    gpu: &Gpu,
    s: &Sizes,
    rope: Rotation,
    g: &AttentionGradient,
) -> Result<()> {
    let (n, heads, units) = (s.tokens as i32, s.heads as i32, (s.batch * s.heads) as i32);
    if gpu.is_hopper() && (129..=256).contains(&s.tokens) {
        let grid = (units as u32).min(gpu.multiprocessors());
        let shared = 7 * 256 * 128 + 1024 + 64;
        let scale = SCALE * std::f32::consts::LOG2_E;
        return launch!(gpu, "attention_sm90", "attention_backward", (grid, 1, 1), 384, shared;
            g.qkv, rope.cos, rope.sin, g.out, g.dout, g.lse, g.dqkv, n, heads, units, scale);
    }
    let (kernel, keys, warps, stages) = match s.tokens {
        ..=64 => ("attention_backward_64", 64, 4, 1),
        65..=128 => ("attention_backward_128", 128, 4, 2),
        _ => ("attention_backward_256", 256, 8, 2),
    };
    let grid = (blocks(s.tokens, keys), s.heads as u32, s.batch as u32);
    let shared = 3 * keys * 128 + stages * 2 * 64 * 128 + 512;
    launch!(gpu, "attention", kernel, grid, 32 * warps, shared;
        g.qkv, rope.cos, rope.sin, g.out, g.dout, g.lse, g.dqkv, g.parts, n, heads, SCALE)?;
    if grid.0 == 1 {
        return Ok(());
    }
    let sums = s.rows() * s.heads * 32;
    launch!(gpu, "attention", "attention_sum_dq", (blocks(sums, THREADS), 1, 1), THREADS, 0;
        g.parts, g.dqkv, grid.0 as i32, s.rows() as i64, heads)
}

pub fn swiglu_forward(gpu: &Gpu, s: &Sizes, x: u64, h: u64) -> Result<()> {
    let grid = (blocks(s.rows() * s.hidden / 8, THREADS), 1, 1);
    launch!(gpu, "swiglu", "swiglu_forward", grid, THREADS, 0; x, h, s.rows() as i64, s.hidden as i32)
}

/// dx from dh.
pub fn swiglu_backward(gpu: &Gpu, s: &Sizes, x: u64, dh: u64, dx: u64) -> Result<()> {
    let grid = (blocks(s.rows() * s.hidden / 8, THREADS), 1, 1);
    launch!(gpu, "swiglu", "swiglu_backward", grid, THREADS, 0;
        x, dh, dx, s.rows() as i64, s.hidden as i32)
}

/// Rows from which on SwiGLU within the products beside it is faster than after them: fewer make too few tiles.
const PRODUCT_ROWS: usize = 1024;
/// Of their kernels: rows of a tile, rows that a warp copies at a time, ks of a stage.
const TILE_ROWS: usize = 128;
const WARP_ROWS: usize = 16;
const STAGE: usize = 64;

/// Whether SwiGLU happens within the products: same bits.
pub fn swiglu_in_products(gpu: &Gpu, s: &Sizes) -> bool {
    gpu.is_hopper() && s.rows() >= PRODUCT_ROWS
}

/// hidden = silu(gate)·up of y·weightᵀ, weight [2F, C]; and gate | up, where it is not 0.
pub fn swiglu_product_forward(
    gpu: &Gpu,
    s: &Sizes,
    y: u64,
    weight: u64,
    gate_up: u64,
    hidden: u64,
) -> Result<()> {
    const COLUMNS: usize = 80; // of a tile
    const SHARED: usize = 5 * (TILE_ROWS + 2 * COLUMNS) * 128 + 8 * 2 * WARP_ROWS * COLUMNS * 2;
    let (rows, c, f) = (s.rows(), s.width, s.hidden);
    let y = TensorMap::swizzled(y, [rows, c], [TILE_ROWS, STAGE])?;
    let weight = TensorMap::swizzled(weight, [2 * f, c], [COLUMNS / 2, STAGE])?;
    let hidden = TensorMap::plain(hidden, [rows, f], [WARP_ROWS, COLUMNS])?;
    let pairs = rows.div_ceil(2 * TILE_ROWS) * f.div_ceil(COLUMNS);
    let grid = 2 * (pairs as u32).min(gpu.multiprocessors() / 2);
    let (grid, shared) = ((grid, 1, 1), (SHARED + 42 * 8) as u32);
    if gate_up == 0 {
        return launch!(gpu, "swiglu_sm90", "swiglu_product", grid, 384, shared;
            y, weight, hidden, rows as i32, c as i32, f as i32);
    }
    let gate_up = TensorMap::plain(gate_up, [rows, 2, f], [WARP_ROWS, 1, COLUMNS])?;
    launch!(gpu, "swiglu_sm90", "swiglu_product_kept", grid, 384, shared;
        y, weight, gate_up, hidden, rows as i32, c as i32, f as i32)
}

/// The gradient of gate | up from dbranch, of hidden·weightᵀ; weight [C, F].
pub fn swiglu_product_backward(
    gpu: &Gpu,
    s: &Sizes,
    dbranch: u64,
    weight: u64,
    gate_up: u64,
    dgate_up: u64,
) -> Result<()> {
    const COLUMNS: usize = 128;
    let (rows, c, f) = (s.rows(), s.width, s.hidden);
    let dbranch = TensorMap::swizzled(dbranch, [rows, c], [TILE_ROWS, STAGE])?;
    let weight = TensorMap::swizzled(weight, [c, f], [STAGE, 64])?;
    let [gate_up, dgate_up] =
        [gate_up, dgate_up].map(|at| TensorMap::swizzled(at, [rows, 2, f], [WARP_ROWS, 1, 64]));
    // With more ks the weights' way to the blocks is what takes time: then two share it.
    let (kernel, blocks, slots) = match c {
        ..=768 => ("swiglu_product_backward", 1, 2),
        _ => ("swiglu_product_backward_pairs", 2, 3),
    };
    let shared = 4 * (TILE_ROWS + COLUMNS) * 128 + 8 * slots * WARP_ROWS * 256 + 40 * 8;
    let tiles = rows.div_ceil(blocks as usize * TILE_ROWS) * f.div_ceil(COLUMNS);
    let grid = blocks * (tiles as u32).min(gpu.multiprocessors() / blocks);
    launch!(gpu, "swiglu_sm90", kernel, (grid, 1, 1), 384, shared as u32;
        dbranch, weight, gate_up?, dgate_up?, rows as i32, c as i32, f as i32)
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
