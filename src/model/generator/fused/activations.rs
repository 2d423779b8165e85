//! The buffers of one pass: what a block keeps for its gradient, and scratch that every block uses
//! in turn.
//!
//! A block keeps 6 + 3 + 3·F/C rows of C bf16 per token (d12: 1.7 GB per block at 65,536 tokens).
//! Blocks that are recomputed for the backward pass keep two of them ([`Ends`]).

use candle_core::Result;
use half::bf16;

use super::Sizes;
use crate::model::generator::TIME_FEATURES;
use crate::ops::condition::{DropoutOnGpu, row_sums_scratch};
use crate::ops::cuda::{Buffer, Gpu};
use crate::ops::swiglu::cuda::swiglu_in_products;

/// Where a block begins and ends, as rows [B·N, C]: the residual stream before it, and the MLP's
/// output before its gate, unless that is added within its matmul.
pub struct Ends {
    pub x: Buffer<bf16>,
    pub h2: Buffer<bf16>,
}

impl Ends {
    fn new(gpu: &Gpu, s: &Sizes) -> Result<Self> {
        let rows = || Buffer::<bf16>::zeros(gpu, s.rows() * s.width);
        Ok(Self {
            x: rows()?,
            h2: rows()?,
        })
    }
}

/// What lies between a block's ends, all that its gradient needs. Rows are [B·N, ·].
pub struct Inner {
    /// The normalised inputs of both branches [C].
    pub y1: Buffer<bf16>,
    pub y2: Buffer<bf16>,
    /// [3C], [C], f32 [B,H,N]
    pub qkv: Buffer<bf16>,
    pub attention: Buffer<bf16>,
    pub lse: Buffer<f32>,
    /// Attention's branch before its gate [C].
    pub h1: Buffer<bf16>,
    /// gate | up [2F], SiLU(gate)·up [F].
    pub gate_up: Buffer<bf16>,
    pub hidden: Buffer<bf16>,
    /// 1/rms of both normalisations [1].
    pub rstd1: Buffer<f32>,
    pub rstd2: Buffer<f32>,
}

impl Inner {
    fn new(gpu: &Gpu, s: &Sizes) -> Result<Self> {
        let (rows, c) = (s.rows(), s.width);
        let bf = |columns: usize| Buffer::<bf16>::zeros(gpu, rows * columns);
        let f = |count: usize| Buffer::<f32>::zeros(gpu, count);
        Ok(Self {
            y1: bf(c)?,
            y2: bf(c)?,
            qkv: bf(3 * c)?,
            attention: bf(c)?,
            lse: f(rows * s.heads)?,
            h1: bf(c)?,
            gate_up: bf(2 * s.hidden)?,
            hidden: bf(s.hidden)?,
            rstd1: f(rows)?,
            rstd2: f(rows)?,
        })
    }
}

/// How many buffer sets the blocks of a pass have; if there are fewer than blocks, they are used in
/// turn.
#[derive(Debug, Clone, Copy)]
pub struct Sets {
    pub ends: usize,
    pub inner: usize,
    /// A gradient follows.
    pub gradient: bool,
}

impl Sets {
    /// Nothing outlives its block.
    pub const ONE: Self = Self {
        ends: 1,
        inner: 1,
        gradient: false,
    };

    /// For the gradient of `depth` blocks, the first `recomputed` of which keep their ends only.
    pub fn for_gradient(depth: usize, recomputed: usize) -> Self {
        Self {
            ends: depth,
            inner: depth.saturating_sub(recomputed).max(1),
            gradient: true,
        }
    }
}

/// Buffers of the backward pass, used by every block in turn.
pub struct Scratch {
    /// Gradients of the stream, alternately, of a normalised input, of a branch, of attention's
    /// output [C].
    pub dx: [Buffer<bf16>; 2],
    pub dy: Buffer<bf16>,
    pub dbranch: Buffer<bf16>,
    pub dattention: Buffer<bf16>,
    /// [3C], [2F], and [F] if SwiGLU's gradient is not fused into w3's matmul.
    pub dqkv: Buffer<bf16>,
    pub dhidden: Buffer<bf16>,
    pub dgate_up: Buffer<bf16>,
    /// Gradients of all modulations [B, (6L+2)C].
    pub dmodulations: Buffer<bf16>,
    pub partials: Buffer<f32>,
    pub attention_parts: Buffer<f32>,
    pub row_sums: Buffer<f32>,
    /// [mix], then the condition's: f32 and bf16 [B, C].
    pub dmixed: Buffer<bf16>,
    pub dcondition: Buffer<f32>,
    pub dpre: Buffer<bf16>,
    /// Gradients of the narrow halves of modulations [B, L·R].
    pub dnarrow: Buffer<bf16>,
}

impl Scratch {
    pub fn new(gpu: &Gpu, s: &Sizes) -> Result<Self> {
        let (rows, c) = (s.rows(), s.width);
        let bf = |columns: usize| Buffer::<bf16>::zeros(gpu, rows * columns);
        let summed = [
            (rows, s.codes),
            (rows, c.max(s.mix)),
            (s.batch, s.tokens * c),
            (s.batch, s.modulations()),
        ];
        let sums = summed
            .iter()
            .map(|&(rows, columns)| row_sums_scratch(rows, columns));
        Ok(Self {
            dx: [bf(c)?, bf(c)?],
            dy: bf(c)?,
            dbranch: bf(c)?,
            dattention: bf(c)?,
            dqkv: bf(3 * c)?,
            dhidden: match swiglu_in_products(gpu, rows) {
                true => bf(0)?,
                false => bf(s.hidden)?,
            },
            dgate_up: bf(2 * s.hidden)?,
            dmodulations: Buffer::zeros(gpu, s.batch * s.modulations())?,
            partials: Buffer::zeros(gpu, s.adaln().partials())?,
            attention_parts: Buffer::zeros(gpu, s.attention().parts())?,
            row_sums: Buffer::zeros(gpu, sums.max().unwrap_or(0))?,
            dmixed: bf(s.mix)?,
            dcondition: Buffer::zeros(gpu, s.batch * c)?,
            dpre: Buffer::zeros(gpu, s.batch * c)?,
            dnarrow: Buffer::zeros(gpu, s.batch * s.narrow())?,
        })
    }
}

/// What the condition of an image becomes: labels and t u32 [B] to all modulations.
pub struct Conditions {
    pub labels: Buffer<u32>,
    pub t: Buffer<u32>,
    /// Time features [256], the MLP's middle before and after SiLU, its end, the sum with the
    /// label, its SiLU [C] per image.
    pub features: Buffer<bf16>,
    pub middle: Buffer<f32>,
    pub middle_silu: Buffer<bf16>,
    pub time: Buffer<f32>,
    pub pre: Buffer<f32>,
    pub condition: Buffer<bf16>,
    /// The narrow halves of modulations of low rank [L·R] per image.
    pub narrow: Buffer<bf16>,
    /// [(6L+2)C] per image.
    pub modulations: Buffer<f32>,
}

impl Conditions {
    /// For `s.batch` images.
    pub fn new(gpu: &Gpu, s: &Sizes) -> Result<Self> {
        let (b, c) = (s.batch, s.width);
        let bf = |count: usize| Buffer::<bf16>::zeros(gpu, count);
        let f = |count: usize| Buffer::<f32>::zeros(gpu, count);
        let u = |count: usize| Buffer::<u32>::zeros(gpu, count);
        Ok(Self {
            labels: u(b)?,
            t: u(b)?,
            features: bf(b * TIME_FEATURES)?,
            middle: f(b * c)?,
            middle_silu: bf(b * c)?,
            time: f(b * c)?,
            pre: f(b * c)?,
            condition: bf(b * c)?,
            narrow: bf(b * s.narrow())?,
            modulations: f(b * s.modulations())?,
        })
    }
}

/// The probability and the seed of dropout; whose draws also depend on the examples' numbers.
#[derive(Debug, Clone, Copy)]
pub struct TrainingDropout {
    pub probability: f64,
    pub seed: u64,
}

/// Inputs and activations of a batch.
pub struct Activations {
    /// ε_t and z'_{t−1} f32 [B,N,d]; codes u32 [B,N].
    pub noise: Buffer<f32>,
    pub sum: Buffer<f32>,
    pub codes: Buffer<u32>,
    /// The examples' numbers u64 [B].
    pub indices: Buffer<u64>,
    /// In training, if the configuration has it.
    pub dropout: Option<TrainingDropout>,
    pub conditions: Conditions,
    pub trunk: Trunk,
    /// Loss and hit per token; loss and hits per image; f32 [T,3].
    pub loss: Buffer<f32>,
    pub hits: Buffer<u32>,
    pub image_sums: Buffer<f32>,
    pub tally: Buffer<f32>,
}

impl Activations {
    /// What the gradient needs, if the first `recomputed` blocks are recomputed for it.
    pub fn new(gpu: &Gpu, s: &Sizes, recomputed: usize) -> Result<Self> {
        let (rows, b) = (s.rows(), s.batch);
        let f = |count: usize| Buffer::<f32>::zeros(gpu, count);
        let u = |count: usize| Buffer::<u32>::zeros(gpu, count);
        Ok(Self {
            noise: f(rows * s.latent)?,
            sum: f(rows * s.latent)?,
            codes: u(rows)?,
            indices: Buffer::zeros(gpu, b)?,
            dropout: None,
            conditions: Conditions::new(gpu, s)?,
            trunk: Trunk::new(gpu, s, Sets::for_gradient(s.depth, recomputed))?,
            loss: f(rows)?,
            hits: u(rows)?,
            image_sums: f(b * 2)?,
            tally: f(s.steps * 3)?,
        })
    }

    pub(super) fn dropping(&self) -> Option<DropoutOnGpu<'_>> {
        self.dropout.map(|dropout| DropoutOnGpu {
            probability: dropout.probability,
            seed: dropout.seed,
            indices: self.indices.view(),
        })
    }
}

/// From the joined inputs to the logits.
pub struct Trunk {
    /// [ε_t | z'_{t−1}] [2d], [mix] per token.
    pub joined: Buffer<bf16>,
    pub mixed: Buffer<bf16>,
    ends: Vec<Ends>,
    inner: Vec<Inner>,
    /// Whether a gradient follows.
    pub(super) gradient: bool,
    /// The residual stream between a block's branches [C].
    pub x_mid: Buffer<bf16>,
    /// The last residual stream (unless its branch is added within a matmul), its normalised form
    /// [C], 1/rms.
    pub x: Buffer<bf16>,
    pub y: Buffer<bf16>,
    pub rstd: Buffer<f32>,
    /// [K], which become their gradient.
    pub logits: Buffer<bf16>,
}

impl Trunk {
    pub fn new(gpu: &Gpu, s: &Sizes, sets: Sets) -> Result<Self> {
        let (rows, c) = (s.rows(), s.width);
        let bf = |columns: usize| Buffer::<bf16>::zeros(gpu, rows * columns);
        Ok(Self {
            joined: bf(2 * s.latent)?,
            mixed: bf(s.mix)?,
            ends: (0..sets.ends)
                .map(|_| Ends::new(gpu, s))
                .collect::<Result<_>>()?,
            inner: (0..sets.inner)
                .map(|_| Inner::new(gpu, s))
                .collect::<Result<_>>()?,
            gradient: sets.gradient,
            x_mid: bf(c)?,
            x: bf(c)?,
            y: bf(c)?,
            rstd: Buffer::zeros(gpu, rows)?,
            logits: bf(s.codes)?,
        })
    }

    pub fn ends(&self, block: usize) -> &Ends {
        &self.ends[block % self.ends.len()]
    }

    pub fn inner(&self, block: usize) -> &Inner {
        &self.inner[block % self.inner.len()]
    }

    /// Whether what lies between a block's ends stays for the gradient.
    pub fn keeps_inner(&self, block: usize) -> bool {
        self.gradient && block + self.inner.len() >= self.ends.len()
    }
}
