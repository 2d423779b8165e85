//! A convolution and the gradient of its input as work for the kernels: which windows of a map each
//! output sees.

use candle_core::Result;
use half::bf16;

use super::{Finish, Half, Windows, Work};
use crate::ops::conv2d::op::{Conv2d, Reach};
use crate::ops::cuda::{Gpu, View, ViewMut};

/// None for strides that the kernels do not serve.
pub(in crate::ops::conv2d) fn of_forward(op: &Conv2d, maps: usize) -> Option<Work> {
    let w = &op.window;
    (w.stride <= 2).then(|| Work {
        maps,
        input: w.input,
        channels: op.channels.0,
        windows: vec![Windows {
            output: w.output,
            low: [-(w.padding.top as isize), -(w.padding.left as isize)],
            stride: w.stride,
            taps: [w.kernel.0, w.kernel.1],
            tap: 0,
            tap_steps: [w.kernel.1 as isize, 1],
            to: (0, 0),
        }],
        taps: op.taps(),
        transposed: false,
        size: w.output,
        columns: op.channels.1,
    })
}

/// None for strides that the kernels do not serve.
pub(in crate::ops::conv2d) fn of_input_gradient(op: &Conv2d, maps: usize) -> Option<Work> {
    let w = &op.window;
    (w.stride <= 2).then(|| Work {
        maps,
        input: w.output,
        channels: op.channels.1,
        windows: op.phases().map(|phase| reaching(op, phase)).collect(),
        taps: op.taps(),
        transposed: true,
        size: w.input,
        columns: op.channels.0,
    })
}

/// y [B,H',W',O] of `maps` maps x [B,H,W,I] and the packed weight [O,kh,kw,I].
pub(in crate::ops::conv2d) fn forward<T: Half>(
    gpu: &Gpu,
    op: &Conv2d,
    maps: usize,
    x: View<T>,
    weight: View<T>,
    finish: Finish<T>,
    y: ViewMut<T>,
) -> Result<bool> {
    match of_forward(op, maps) {
        Some(work) => work.run(gpu, x, weight, finish, y),
        None => Ok(false),
    }
}

/// dL/dx [B,H,W,I] from `grad` [B,H',W',O] and the packed weight.
pub(in crate::ops::conv2d) fn input_gradient(
    gpu: &Gpu,
    op: &Conv2d,
    maps: usize,
    grad: View<bf16>,
    weight: View<bf16>,
    finish: Finish,
    dx: ViewMut<bf16>,
) -> Result<bool> {
    match of_input_gradient(op, maps) {
        Some(work) => work.run(gpu, grad, weight, finish, dx),
        None => Ok(false),
    }
}

/// The windows of outputs that reach the inputs of a phase.
fn reaching(op: &Conv2d, phase: (usize, usize)) -> Windows {
    let across = op.window.kernel.1;
    let [down, right] = op.reach(phase);
    let output = (down.positions, right.positions);
    if down.count == 0 || right.count == 0 {
        // No output does: one tap behind the last of the weights, which is nought.
        return Windows {
            output,
            low: [0, 0],
            stride: 1,
            taps: [1, 1],
            tap: op.taps(),
            tap_steps: [0, 0],
            to: phase,
        };
    }
    let step = |reach: &Reach| -(reach.step as isize);
    Windows {
        output,
        low: [down.origin, right.origin],
        stride: 1,
        taps: [down.count, right.count],
        tap: down.highest * across + right.highest,
        tap_steps: [step(&down) * across as isize, step(&right)],
        to: phase,
    }
}
