//! L_quant on a GPU: one pass over the maps of all steps forward, one backward (`kernel_loss.cu`).

use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, Layout, Result, Tensor};

use super::loss::QuantizationLoss;
use crate::ops::cuda::{Gpu, Output, View, ViewMut};
use crate::ops::sums;

/// Maximum number of steps in the kernels' argument.
const STEPS: usize = 64;
/// Maximum number of blocks. It depends on n alone, and so does the summation order.
const BLOCKS: usize = 2048;

/// The kernels' argument, as in `kernel_loss.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Arguments {
    noisy: u64,
    lookup: u64,
    grad: u64,
    partials: u64,
    dv: u64,
    dlookup: u64,
    n: i64,
    steps: i32,
    unused: i32,
    weight: [f32; STEPS],
    to_v: [f32; STEPS],
    to_lookup: [f32; STEPS],
}

pub(super) fn serves(steps: usize) -> bool {
    steps <= STEPS
}

/// A launch over n elements of every step.
struct Pass<'a> {
    gpu: &'a Gpu,
    arguments: Arguments,
    vector: usize,
}

impl<'a> Pass<'a> {
    fn new(
        gpu: &'a Gpu,
        op: &QuantizationLoss,
        noisy: View<'a, f32>,
        lookup: View<'a, f32>,
        n: usize,
    ) -> Self {
        let steps = op.weight.len();
        assert!(noisy.len() == steps * n && lookup.len() == steps * n && steps <= STEPS);
        let mut arguments = Arguments {
            noisy: noisy.address(),
            lookup: lookup.address(),
            grad: 0,
            partials: 0,
            dv: 0,
            dlookup: 0,
            n: n as i64,
            steps: steps as i32,
            unused: 0,
            weight: [0.0; STEPS],
            to_v: [0.0; STEPS],
            to_lookup: [0.0; STEPS],
        };
        for (t, (&weight, &alpha)) in op.weight.iter().zip(&op.alpha).enumerate() {
            let (weight, delta) = (f64::from(weight), f64::from(op.delta));
            let slope = 2.0 * weight / n as f64;
            arguments.weight[t] = (weight * (1.0 + delta)) as f32;
            arguments.to_v[t] = (slope * f64::from(op.delta * alpha)) as f32;
            arguments.to_lookup[t] = -slope as f32;
        }
        let aligned = [noisy, lookup]
            .iter()
            .all(|v| v.address().is_multiple_of(16));
        Self {
            gpu,
            arguments,
            vector: if aligned && n.is_multiple_of(4) { 4 } else { 1 },
        }
    }

    fn blocks(&self) -> usize {
        let each = 256 * self.vector;
        (self.arguments.n as usize).div_ceil(each).clamp(1, BLOCKS)
    }

    fn run(&self, direction: &str) -> Result<()> {
        let name = format!("loss_{direction}_{}", self.vector);
        let function = self.gpu.kernel("quantize_loss", &name, 0)?;
        let mut launch = self.gpu.launch(&function);
        launch.structure(&self.arguments);
        // SAFETY: the argument matches the kernel's struct; its pointers cover the sizes that `new`
        // and the callers check.
        unsafe { launch.run((self.blocks() as u32, 1, 1), 256, 0) }
    }
}

pub(super) fn forward(
    op: &QuantizationLoss,
    v: &CudaStorage,
    n: usize,
    lookup: (&CudaStorage, &Layout),
) -> Result<CudaStorage> {
    let gpu = Gpu::of(v.device())?;
    let noisy = op.noisy.contiguous()?;
    let lookup = View::<f32>::stored(lookup.0, lookup.1)?;
    let mut pass = Pass::new(&gpu, op, View::of(&noisy)?, lookup, n);
    let mut partials = Output::<f32>::new(gpu.device(), pass.blocks())?;
    pass.arguments.partials = partials.view_mut().address();
    pass.run("forward")?;
    Ok(sums::of_blocks(&gpu, &partials, 1.0 / n as f64)?.storage())
}

/// Gradients with respect to v and lookup, each if the graph tracks it.
pub(super) fn backward(
    op: &QuantizationLoss,
    v: &Tensor,
    lookup: &Tensor,
    grad: &Tensor,
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let gpu = Gpu::of(v.device().as_cuda_device()?)?;
    let wanted = |x: &Tensor| -> Result<Option<Output<f32>>> {
        let output = || Output::new(gpu.device(), x.elem_count());
        x.track_op().then(output).transpose()
    };
    let (mut dv, mut dlookup) = (wanted(v)?, wanted(lookup)?);
    let (noisy, grad) = (op.noisy.contiguous()?, View::<f32>::of(grad)?);
    let mut pass = Pass::new(
        &gpu,
        op,
        View::of(&noisy)?,
        View::of(lookup)?,
        v.elem_count(),
    );
    let address = |to: Option<ViewMut<f32>>| to.map_or(0, |to| to.address());
    pass.arguments.grad = grad.address();
    pass.arguments.dv = address(dv.as_mut().map(Output::view_mut));
    pass.arguments.dlookup = address(dlookup.as_mut().map(Output::view_mut));
    pass.run("backward")?;
    let gradient = |d: Option<Output<f32>>, x: &Tensor| d.map(|d| d.tensor(x.shape()));
    Ok((gradient(dv, v), gradient(dlookup, lookup)))
}
