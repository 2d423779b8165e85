//! The weight gradient on Hopper (kernel_weight_sm90.cu): dL/dw f32 [O,I,kh,kw] from bf16 x
//! [B,H,W,I] and dL/dy [B,H',W',O].

use candle_core::{Result, bail};
use half::bf16;

use super::op::Conv2d;
use super::weight_plan::{Cut, Plan};
use crate::ops::cuda::{Gpu, Output, TensorMap, View, ViewMut};

/// What channels are multiples of, and the fewest that are worth a box of 64.
const ALIGNED: usize = 8;
const FEWEST: usize = 32;
/// Taps down and across at most.
const KERNEL: usize = 7;

/// The kernels' argument.
#[repr(C)]
#[derive(Clone, Copy)]
struct Arguments {
    cut: Cut,
    slots: u64,
    dw: u64,
}

/// Whether the kernels are for this card and these sizes.
pub(super) fn serves(gpu: &Gpu, op: &Conv2d) -> bool {
    let ((i, o), (kh, kw)) = (op.channels, op.window.kernel);
    let channels = |c: usize| c.is_multiple_of(ALIGNED) && c >= FEWEST;
    gpu.is_hopper() && channels(i) && channels(o) && kh.max(kw) <= KERNEL
}

/// Writes dL/dw: the same bits at every run.
///
/// Errors: sizes that [`serves`] does not name, or more positions than 2³¹.
pub(super) fn weight_gradient(
    gpu: &Gpu,
    op: &Conv2d,
    maps: usize,
    x: View<bf16>,
    grad: View<bf16>,
    dw: ViewMut<f32>,
) -> Result<()> {
    let (w, (i, o)) = (&op.window, op.channels);
    let Some(plan) = Plan::new(op, maps).filter(|_| serves(gpu, op)) else {
        bail!("no weight gradient of Hopper's for {maps} maps and {op:?}");
    };
    let of_x = [maps, w.input.0, w.input.1, i];
    let of_grad = [maps, w.output.0, w.output.1, o];
    assert_eq!(x.len(), of_x.iter().product::<usize>());
    assert_eq!(grad.len(), of_grad.iter().product::<usize>());
    assert_eq!(dw.len(), o * i * op.taps());
    let mut slots = Output::<f32>::new(gpu.device(), plan.slots())?;
    let arguments = Arguments {
        cut: plan.cut,
        slots: slots.view_mut().address(),
        dw: dw.address(),
    };
    let [low, high] = plan.corners(op);
    let more = [0, plan.more as i32];
    let x = TensorMap::im2col(x.address(), of_x, low, high, w.stride, plan.pixels)?;
    let grad = TensorMap::im2col(grad.address(), of_grad, [0, 0], more, 1, 64)?;
    let kernel = gpu.kernel("conv2d_weight_sm90", plan.kernel.name, plan.shared)?;
    let mut launch = gpu.launch(&kernel);
    launch.early();
    launch.structure(&arguments);
    launch.value(grad);
    launch.value(x);
    let blocks = (plan.workers as u32, 1, 1);
    // SAFETY: the arguments are the kernel's, which waits for the one before it; the views and
    // slots have the lengths it reads and writes.
    unsafe { launch.run(blocks, plan.kernel.threads(), plan.shared) }?;

    let sum = plan.sum();
    let kernel = gpu.kernel("conv2d_weight_sm90", sum.name, sum.shared)?;
    let mut launch = gpu.launch(&kernel);
    launch.early();
    launch.structure(&arguments);
    for size in plan.kernel.tile() {
        launch.value(size as i32);
    }
    launch.value(sum.outputs);
    launch.value(sum.groups);
    // SAFETY: as above.
    unsafe { launch.run(sum.grid, sum.threads, sum.shared) }
}
