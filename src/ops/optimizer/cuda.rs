//! The GPU version: many tensors per launch (`kernel_tensors.cu`).

use candle_core::{Result, Tensor, bail};

use super::cpu::Factors;
use super::{AdamStep, Trained};
use crate::ops::cuda::{Gpu, Output, View, ViewMut, launch};

/// Elements per block, and the number of tensors that fit into a kernel argument.
const EACH: usize = 4096;
const TENSORS: usize = 64;
const GRADIENTS: usize = 128;

/// As in `kernel_tensors.cu`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Listed {
    grad: u64,
    param: u64,
    m: u64,
    v: u64,
    ema: u64,
    count: i64,
    first_block: i32,
    keep: f32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Tensors {
    grad_scale: f32,
    rate1: f32,
    beta2: f32,
    rate2: f32,
    root_correction2: f32,
    eps: f32,
    step_size: f32,
    ema_rate: f32,
    count: i32,
    unused: i32,
    of: [Listed; TENSORS],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Gradient {
    grad: u64,
    count: i64,
    first_block: i64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Gradients {
    partials: u64,
    count: i64,
    of: [Gradient; GRADIENTS],
}

pub(super) fn adam_step_all(all: &[Trained], step: &AdamStep) -> Result<()> {
    let Some(first) = all.first() else {
        return Ok(());
    };
    let gpu = Gpu::of(first.param.device().as_cuda_device()?)?;
    let f = Factors::new(step);
    for some in all.chunks(TENSORS) {
        let mut tensors = Tensors {
            grad_scale: f.grad_scale,
            rate1: f.rate1,
            beta2: f.beta2,
            rate2: f.rate2,
            root_correction2: f.root_correction2,
            eps: f.eps,
            step_size: f.step_size,
            ema_rate: f.ema_rate,
            count: 0,
            unused: 0,
            of: [Listed::default(); TENSORS],
        };
        // Gradients that had to be made contiguous must live until the launch.
        let mut grads = Vec::with_capacity(some.len());
        let mut blocks = 0;
        for trained in some {
            let step = AdamStep {
                weight_decay: trained.weight_decay,
                ..*step
            };
            let grad = trained.grad.contiguous()?;
            let ema = trained.ema.map(ViewMut::<f32>::variable).transpose()?;
            let count = trained.param.elem_count();
            tensors.of[tensors.count as usize] = Listed {
                grad: View::<f32>::of(&grad)?.address(),
                param: ViewMut::<f32>::variable(trained.param)?.address(),
                m: ViewMut::<f32>::variable(trained.m)?.address(),
                v: ViewMut::<f32>::variable(trained.v)?.address(),
                ema: ema.map_or(0, |ema| ema.address()),
                count: count as i64,
                first_block: blocks,
                keep: Factors::new(&step).keep,
            };
            tensors.count += 1;
            blocks += count.div_ceil(EACH) as i32;
            grads.push(grad);
        }
        let function = gpu.kernel("optimizer_tensors", "adam_tensors", 0)?;
        let mut launch = gpu.launch(&function);
        launch.structure(&tensors);
        // SAFETY: all tensors have the shape of their parameter, which was checked; there are as
        // many blocks as chunks.
        unsafe { launch.run((blocks.max(1) as u32, 1, 1), 256, 0)? };
    }
    Ok(())
}

/// √Σg² as an f64 scalar.
pub(super) fn norm(grads: &[&Tensor]) -> Result<Tensor> {
    let Some(first) = grads.first() else {
        bail!("global_norm: no gradient");
    };
    let gpu = Gpu::of(first.device().as_cuda_device()?)?;
    let grads: Vec<Tensor> = grads
        .iter()
        .map(|g| g.contiguous())
        .collect::<Result<_>>()?;
    let blocks: usize = grads.iter().map(|g| g.elem_count().div_ceil(EACH)).sum();
    let mut partials = Output::<f64>::new(gpu.device(), blocks)?;
    let mut before = 0;
    for some in grads.chunks(GRADIENTS) {
        let mut list = Gradients {
            partials: partials.view_mut().address() + (before * size_of::<f64>()) as u64,
            count: some.len() as i64,
            of: [Gradient::default(); GRADIENTS],
        };
        let mut blocks = 0;
        for (listed, grad) in list.of.iter_mut().zip(some) {
            *listed = Gradient {
                grad: View::<f32>::of(grad)?.address(),
                count: grad.elem_count() as i64,
                first_block: blocks as i64,
            };
            blocks += grad.elem_count().div_ceil(EACH);
        }
        if blocks > 0 {
            let function = gpu.kernel("optimizer_tensors", "squares_of_tensors", 0)?;
            let mut launch = gpu.launch(&function);
            launch.structure(&list);
            // SAFETY: as many elements as each gradient has, and one sum per block.
            unsafe { launch.run((blocks as u32, 1, 1), 256, 0)? };
        }
        before += blocks;
    }
    let mut norm = Output::<f64>::new(gpu.device(), 1)?;
    // SAFETY: `blocks` sums, and one value.
    unsafe {
        launch!(gpu, "optimizer_tensors", "norm_of_squares", (1, 1, 1), 256, 0;
            partials.view(), blocks as i64, norm.view_mut())?
    };
    Ok(norm.tensor(()))
}
