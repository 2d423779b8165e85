//! The CPU version: gathered windows times packed weights, one block of windows at a time.
//!
//! The gradient for x is also a convolution of dy, one for each remainder (i mod s, j mod s) of an
//! input's position: only every s-th kernel offset reaches it, so nothing is multiplied by zero.

use std::sync::OnceLock;

use candle_core::{CpuStorage, Result, Shape, Tensor};
use rayon::prelude::*;

use super::gather::Gather;
use super::op::Conv2d;
use super::pack;
use super::winograd::Winograd;
use crate::ops::product::{Panels, Plain, outer, times, times_then};
use crate::ops::window::Window;
use crate::ops::{simd, slices};

impl Conv2d {
    fn windows<'a>(&self, x: &'a [f32]) -> Gather<'a> {
        let Window {
            kernel,
            stride,
            padding,
            input,
            output,
        } = self.window;
        Gather {
            maps: x,
            size: input,
            channels: self.channels.0,
            kernel,
            stride,
            origin: (-(padding.top as isize), -(padding.left as isize)),
            output,
        }
    }

    /// max(0, conv(x) + bias) with the weight's panels.
    pub fn forward_relu(&self, x: &[f32], weight: &Panels, bias: &[f32]) -> Vec<f32> {
        let relu = |_: usize, y: &mut [f32]| {
            simd::vectorized(
                #[inline(always)]
                || {
                    for y in y.iter_mut() {
                        // NaN stays NaN.
                        *y = if *y < 0.0 { 0.0 } else { *y };
                    }
                },
            )
        };
        if self.is_pointwise() {
            times_then(&Plain::new(x, self.channels.0), weight, Some(bias), relu)
        } else {
            times_then(&self.windows(x), weight, Some(bias), relu)
        }
    }

    pub fn forward(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> (CpuStorage, Shape) {
        let (i, o) = self.channels;
        let make = || Panels::of_outputs(weight, o, i, self.taps());
        let made = OnceLock::new();
        let panels = || match &self.packed {
            Some(packed) => packed.get_or_make(make),
            None => made.get_or_init(make),
        };
        let packed = self.packed.as_ref();
        let winograd = packed.and_then(|p| Winograd::new(&self.window, self.channels, weight, p));
        let y = match &winograd {
            Some(winograd) => winograd.forward(x, bias),
            None if self.is_pointwise() => times(&Plain::new(x, i), panels(), bias),
            None => times(&self.windows(x), panels(), bias),
        };
        let (height, width) = self.window.output;
        let maps = y.len() / (height * width * o);
        match winograd {
            Some(winograd) => winograd.count(maps),
            None => self.count(maps),
        }
        let shape = Shape::from((maps, height, width, o));
        (CpuStorage::F32(y), shape)
    }

    /// dL/dw [O,I,kh,kw] and dL/dbias [O] from `grad` = dL/dy.
    pub fn weight_grad(&self, x: &[f32], grad: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (i, o) = self.channels;
        let (weight, bias) = if self.is_pointwise() {
            outer(&Plain::new(x, i), grad, o)
        } else {
            outer(&self.windows(x), grad, o)
        };
        (pack::from_windows(weight, i, self.taps()), bias)
    }

    /// dL/dx from `grad` = dL/dy.
    fn input_grad(&self, weight: &[f32], grad: &[f32]) -> Vec<f32> {
        let (i, o) = self.channels;
        if self.is_pointwise() {
            return times(&Plain::new(grad, o), &Panels::of_rows(weight, i), None);
        }
        let stride = self.window.stride;
        if stride == 1 {
            let (windows, taps) = self.reaching(grad, (0, 0));
            let weight = pack::by_input(weight, o, i, self.taps(), &taps);
            return times(&windows, &Panels::of_rows(&weight, i), None);
        }
        let (height, width) = self.window.input;
        let maps = grad.len() / (self.window.output.0 * self.window.output.1 * o);
        let mut dx = vec![0f32; maps * height * width * i];
        for phase in self.phases() {
            let (windows, taps) = self.reaching(grad, phase);
            if taps.is_empty() {
                continue;
            }
            let weight = pack::by_input(weight, o, i, self.taps(), &taps);
            // [B,⌈(H−y)/s⌉,⌈(W−x)/s⌉,I]
            let part = times(&windows, &Panels::of_rows(&weight, i), None);
            let (lines, columns) = windows.output;
            dx.par_chunks_mut(height * width * i)
                .zip(part.par_chunks(lines * columns * i))
                .for_each(|(dx, part)| {
                    let dx = dx.chunks_exact_mut(width * i).skip(phase.0).step_by(stride);
                    for (dx, part) in dx.zip(part.chunks_exact(columns * i)) {
                        let dx = dx.chunks_exact_mut(i).skip(phase.1).step_by(stride);
                        for (dx, part) in dx.zip(part.chunks_exact(i)) {
                            dx.copy_from_slice(part);
                        }
                    }
                });
        }
        dx
    }

    /// The windows of `grad` that reach the inputs (phase.0 + s·u, phase.1 + s·v), and the kernel
    /// offsets by which they do.
    fn reaching<'a>(&self, grad: &'a [f32], phase: (usize, usize)) -> (Gather<'a>, Vec<usize>) {
        let Window { kernel, output, .. } = self.window;
        let [down, across] = self.reach(phase);
        let (rows, cols) = (down.taps(), across.taps());
        let taps = rows
            .iter()
            .flat_map(|y| cols.iter().map(move |x| y * kernel.1 + x))
            .collect();
        let windows = Gather {
            maps: grad,
            size: output,
            channels: self.channels.1,
            kernel: (rows.len(), cols.len()),
            stride: 1,
            origin: (down.origin, across.origin),
            output: (down.positions, across.positions),
        };
        (windows, taps)
    }

    pub fn backward(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let device = x.device();
        slices::read([x, weight, grad], |[xs, ws, grads]| {
            let dx = match x.track_op() {
                true => Some(Tensor::from_vec(
                    self.input_grad(ws, grads),
                    x.shape(),
                    device,
                )?),
                false => None,
            };
            let bias = bias.is_some_and(|bias| bias.track_op());
            if !weight.track_op() && !bias {
                return Ok([dx, None, None]);
            }
            let (dw, db) = self.weight_grad(xs, grads);
            let dw = Tensor::from_vec(dw, weight.shape(), device)?;
            let db = Tensor::from_vec(db, self.channels.1, device)?;
            Ok([dx, weight.track_op().then_some(dw), bias.then_some(db)])
        })?
    }
}
