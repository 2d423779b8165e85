//! The GPU version on bf16 rows in preallocated buffers (`kernel.cu`): RMSNorm with modulation, and
//! the residual sum before it, in one pass each way.

use candle_core::Result;
use half::bf16;

use crate::ops::cuda::{Gpu, View, ViewMut, launch};

const THREADS: u32 = 256;
/// Rows a block walks over.
const ROWS: usize = 32;

/// Rows [B·N, C] and their modulations.
#[derive(Debug, Clone, Copy)]
pub struct AdalnSizes {
    /// B
    pub batch: usize,
    /// N
    pub tokens: usize,
    /// C, a multiple of 8.
    pub width: usize,
    /// Elements from one image's modulation to the next image's.
    pub stride: usize,
}

impl AdalnSizes {
    /// Elements of the rows.
    fn rows(&self) -> usize {
        self.batch * self.tokens * self.width
    }

    /// Elements from the first of a modulation of the first image to the last of the last image.
    fn modulation(&self) -> usize {
        (self.batch - 1) * self.stride + self.width
    }

    /// Blocks per image.
    fn blocks(&self) -> usize {
        self.tokens.div_ceil(ROWS)
    }

    /// Elements of scratch that [`adaln_backward`] takes: f32 [B·blocks, 3, C].
    pub fn partials(&self) -> usize {
        self.batch * self.blocks() * 3 * self.width
    }

    /// Threads and bytes of shared memory of a block.
    fn block(&self) -> (u32, u32) {
        let threads = (self.width as u32 / 8).next_multiple_of(32);
        (threads, 2 * threads / 32 * 4 * 4) // two buffers of [warps][4 rows] f32
    }
}

/// What is added to the residual stream: a branch's output [B·N, C] times its gate [C] per image.
#[derive(Clone, Copy)]
pub struct Gated<'a> {
    pub branch: View<'a, bf16>,
    pub gate: View<'a, f32>,
}

/// The residual stream before a branch, rows [B·N, C], and the branch that is still to be added, if
/// there is one.
#[derive(Clone, Copy)]
pub struct Residual<'a> {
    pub x: View<'a, bf16>,
    pub add: Option<Gated<'a>>,
}

impl<'a> Residual<'a> {
    /// A stream that everything has been added to.
    pub fn whole(x: View<'a, bf16>) -> Self {
        Self { x, add: None }
    }
}

/// x' = x + gate·branch to `sum` (only if there is a branch; it may be x), y = RMSNorm(x')·(1 +
/// scale) + shift, 1/rms f32 [B·N] to `rstd`.
#[allow(clippy::too_many_arguments)] // sizes, two inputs, eps and three outputs
pub fn adaln_forward(
    gpu: &Gpu,
    s: AdalnSizes,
    eps: f32,
    from: Residual,
    [shift, scale]: [View<f32>; 2],
    sum: ViewMut<bf16>,
    y: ViewMut<bf16>,
    rstd: ViewMut<f32>,
) -> Result<()> {
    let rows = s.batch * s.tokens;
    // A row's result does not depend on how many a block takes: few, if that fills the GPU.
    let wanted = rows / (2 * gpu.multiprocessors() as usize);
    let each = (wanted / 4 * 4).clamp(4, ROWS);
    let grid = ((s.batch * s.tokens.div_ceil(each)) as u32, 1, 1);
    let (threads, shared) = s.block();
    // SAFETY: the arguments are the kernel's, and views of the sizes that it walks over.
    unsafe {
        launch!(early gpu, "adaln", "adaln_forward", grid, threads, shared;
            from.x.first(s.rows()),
            from.add.map(|add| add.branch.first(s.rows())),
            from.add.map(|add| add.gate.first(s.modulation())),
            shift.first(s.modulation()), scale.first(s.modulation()),
            sum.first(s.rows()), y.first(s.rows()), rstd.first(rows),
            s.tokens as i32, s.width as i32, s.stride as i32, eps, each as i32)
    }
}

/// Inputs and outputs of [`adaln_backward`].
pub struct AdalnGradient<'a> {
    /// Gradient of x' from further on, if there is one; gradient of y.
    pub dsum: Option<View<'a, bf16>>,
    pub dy: View<'a, bf16>,
    /// x' and 1/rms of the forward pass; with `add` x, to which the branch is added again.
    pub x: View<'a, bf16>,
    pub add: bool,
    pub rstd: View<'a, f32>,
    pub scale: View<'a, f32>,
    /// The branch that was added, and its gate.
    pub gated: Option<Gated<'a>>,
    /// Out: gradients of x' before the sum and of the branch.
    pub dx: ViewMut<'a, bf16>,
    pub dbranch: ViewMut<'a, bf16>,
    /// Scratch of [`AdalnSizes::partials`].
    pub partials: ViewMut<'a, f32>,
    /// Out, with the modulations' stride; `dgate` if there is a branch.
    pub dshift: ViewMut<'a, bf16>,
    pub dscale: ViewMut<'a, bf16>,
    pub dgate: Option<ViewMut<'a, bf16>>,
}

/// The gradients of [`adaln_forward`].
pub fn adaln_backward(gpu: &Gpu, s: AdalnSizes, g: AdalnGradient) -> Result<()> {
    let rows = s.batch * s.tokens;
    let grid = ((s.batch * s.blocks()) as u32, 1, 1);
    let (threads, shared) = s.block();
    let (n, c, stride) = (s.tokens as i32, s.width as i32, s.stride as i32);
    let mut partials = g.partials.first(s.partials());
    // SAFETY: the arguments are the kernel's, and views of the sizes that it walks over.
    unsafe {
        launch!(gpu, "adaln", "adaln_backward", grid, threads, shared;
            g.dsum.map(|dsum| dsum.first(s.rows())), g.dy.first(s.rows()), g.x.first(s.rows()),
            g.rstd.first(rows),
            g.gated.map(|gated| gated.branch.first(s.rows())),
            g.gated.map(|gated| gated.gate.first(s.modulation())),
            g.scale.first(s.modulation()), g.dx.first(s.rows()), g.dbranch.first(s.rows()),
            partials.again(), n, c, stride, ROWS as i32, i32::from(g.add))?;
    }
    let grid = (s.width.div_ceil(THREADS as usize) as u32, s.batch as u32, 1);
    // SAFETY: as above.
    unsafe {
        launch!(gpu, "adaln", "adaln_sum", grid, THREADS, 0;
            partials.read(), g.dshift.first(s.modulation()), g.dscale.first(s.modulation()),
            g.dgate.map(|dgate| dgate.first(s.modulation())), s.blocks() as i32, c, stride)
    }
}
