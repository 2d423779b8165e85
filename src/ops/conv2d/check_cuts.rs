//! Checks each cut of Hopper's convolutions at small sizes, also where another would be faster
//! there: against the kernels of any GPU in f32.

use candle_core::{DType, Device, Result, Tensor, WithDType, bail};
use half::{bf16, f16};

use super::hopper::{self, Finish, Half, Work};
use super::hopper_cut::CUTS;
use super::hopper_upsampled::of_upsampled;
use super::hopper_weights::{self, Form};
use super::op::Conv2d;
use super::{conv2d, general, upsampled_conv2d};
use crate::ops::Padding;
use crate::ops::cuda::compare::{ALLOWED_BF16, Row, random, relative};
use crate::ops::cuda::{Gpu, Output, View};
use crate::ops::window::Window;

/// As in check_f16.rs.
const ALLOWED_F16: f64 = 5e-4;
/// Of the leaky ReLUs.
const SLOPE: f32 = 0.25;

/// (B, H, W, I, O, stride, padding) of a 3×3 convolution
type Case = (usize, usize, usize, usize, usize, usize, Padding);

const CASES: [Case; 5] = [
    // Channels that end within a block of 64, each way.
    (3, 9, 11, 72, 216, 1, Padding::same(1)),
    (3, 17, 20, 216, 72, 1, Padding::same(1)),
    // Whole tiles of a line.
    (2, 3, 256, 40, 48, 1, Padding::same(1)),
    // A gradient's four parities: in boxes of whole lines, and position by position.
    (2, 16, 64, 72, 104, 2, Padding::new(0, 1, 0, 1)),
    (3, 9, 7, 72, 104, 2, Padding::same(1)),
];

/// (B, H, W, I, O) of an upsampled map's convolution: as the gradients of stride 2.
const UPSAMPLED: [(usize, usize, usize, usize, usize); 2] =
    [(2, 8, 32, 72, 104), (3, 5, 7, 104, 72)];

pub(super) fn check(gpu: &Gpu) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for case in CASES {
        rows.extend(forward::<bf16>(gpu, case, ALLOWED_BF16)?);
        rows.extend(forward::<f16>(gpu, case, ALLOWED_F16)?);
        rows.extend(input_gradient(gpu, case)?);
    }
    for case in UPSAMPLED {
        rows.extend(upsampled(gpu, case)?);
    }
    Ok(rows)
}

/// Values on the card that `dtype` can represent.
fn drawn(gpu: &Gpu, seed: u64, shape: &[usize], dtype: DType) -> Result<Tensor> {
    let there = Device::Cuda(gpu.device().clone());
    random(seed, shape)?.to_dtype(dtype)?.to_device(&there)
}

fn f32_of(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(DType::F32)
}

/// A weight [O,I,3,3] in f32 whose values `dtype` can represent.
fn weight(gpu: &Gpu, (i, o): (usize, usize), dtype: DType) -> Result<Tensor> {
    let scale = 1.0 / ((i * 9) as f64).sqrt();
    let weight = (random(2, &[o, i, 3, 3])? * scale)?.to_dtype(dtype)?;
    f32_of(&weight)?.to_device(&Device::Cuda(gpu.device().clone()))
}

fn convolution(
    size: (usize, usize),
    channels: (usize, usize),
    at: Padding,
    s: usize,
) -> Result<Conv2d> {
    Ok(Conv2d {
        window: Window::new("conv2d", size, (3, 3), s, at)?,
        channels,
        packed: None,
    })
}

/// One row for every cut that serves the work, and one for its second run.
fn by_each_cut<'a, T: Half + 'a>(
    gpu: &Gpu,
    name: &str,
    work: &Work,
    (x, weight): (&Tensor, &Tensor),
    finish: impl Fn() -> Result<Finish<'a, T>>,
    (expected, allowed): (&Tensor, f64),
) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for cut in &CUTS {
        let Some(to) = work.reaching(cut) else {
            continue;
        };
        let run = || -> Result<Tensor> {
            let mut y = Output::<T>::new(gpu.device(), expected.elem_count())?;
            let (x, weight) = (View::<T>::of(x)?, View::<T>::of(weight)?);
            work.run_by(gpu, (cut, to), x, weight, finish()?, y.view_mut())?;
            Ok(y.tensor(expected.shape()))
        };
        let (found, again) = (run()?, run()?);
        for (what, error, allowed) in [
            ("value", relative(&found, expected)?, allowed),
            ("the same twice", relative(&again, &found)?, 0.0),
        ] {
            rows.push(Row {
                name: format!("{name} by {}, {to:?}: {what}", cut.name),
                error,
                allowed,
            });
        }
    }
    Ok(rows)
}

fn forward<T: Half + WithDType>(gpu: &Gpu, case: Case, allowed: f64) -> Result<Vec<Row>> {
    let (b, h, w, i, o, stride, padding) = case;
    let dtype = T::DTYPE;
    let op = convolution((h, w), (i, o), padding, stride)?;
    let Some(work) = hopper::of_forward(&op, b) else {
        bail!("conv2d: no kernel of Hopper's for {op:?}");
    };
    let (height, width) = op.window.output;
    let x = drawn(gpu, 1, &[b, h, w, i], dtype)?;
    let residual = drawn(gpu, 4, &[b, height, width, o], dtype)?;
    let bias = drawn(gpu, 3, &[o], DType::F32)?;
    let weight = weight(gpu, (i, o), dtype)?;
    let sum = conv2d(&f32_of(&x)?, &weight, Some(&bias), stride, padding)?;
    let sum = (sum + f32_of(&residual)?)?.to_device(&Device::Cpu)?;
    let expected = sum.maximum(&(&sum * f64::from(SLOPE))?)?;
    let packed = weight.permute((0, 2, 3, 1))?.contiguous()?;
    let packed = packed.to_dtype(dtype)?;
    let finish = || {
        Ok(Finish {
            bias: Some(View::of(&bias)?),
            residual: Some(View::of(&residual)?),
            slope: Some(SLOPE),
            ..Finish::<T>::default()
        })
    };
    let name = format!("conv2d {dtype:?} {b}×{h}×{w}, {i} to {o}, stride {stride},");
    let expected = (&expected, allowed);
    by_each_cut(gpu, &name, &work, (&x, &packed), finish, expected)
}

fn input_gradient(gpu: &Gpu, case: Case) -> Result<Vec<Row>> {
    let (b, h, w, i, o, stride, padding) = case;
    let op = convolution((h, w), (i, o), padding, stride)?;
    let Some(work) = hopper::of_input_gradient(&op, b) else {
        bail!("conv2d: no kernel of Hopper's for the gradient of {op:?}");
    };
    let (height, width) = op.window.output;
    let grad = drawn(gpu, 5, &[b, height, width, o], DType::BF16)?;
    let gate = drawn(gpu, 6, &[b, h, w, i], DType::BF16)?;
    let weight = weight(gpu, (i, o), DType::BF16)?;
    let exact = f32_of(&grad)?;
    let of_weight = View::<f32>::of(&weight)?;
    let dx = general::input_gradient::<f32>(gpu, &op, b, of_weight, View::of(&exact)?)?;
    let dx = dx.tensor((b, h, w, i)).to_device(&Device::Cpu)?;
    let open = f32_of(&gate.to_device(&Device::Cpu)?)?.gt(0f32)?;
    let slope = f64::from(SLOPE);
    let expected = (dx * f32_of(&open)?.affine(1.0 - slope, slope)?)?;
    let packed = weight.permute((0, 2, 3, 1))?.contiguous()?;
    let packed = packed.to_dtype(DType::BF16)?;
    let finish = || {
        Ok(Finish::<bf16> {
            gate: Some((View::of(&gate)?, SLOPE)),
            ..Finish::default()
        })
    };
    let name = format!("gradient of conv2d {b}×{h}×{w}, {i} to {o}, stride {stride},");
    let expected = (&expected, ALLOWED_BF16);
    by_each_cut(gpu, &name, &work, (&grad, &packed), finish, expected)
}

fn upsampled(gpu: &Gpu, (b, h, w, i, o): (usize, usize, usize, usize, usize)) -> Result<Vec<Row>> {
    let op = convolution((2 * h, 2 * w), (i, o), Padding::same(1), 1)?;
    let work = of_upsampled((b, h, w), (i, o));
    let x = drawn(gpu, 1, &[b, h, w, i], DType::BF16)?;
    let bias = drawn(gpu, 3, &[o], DType::F32)?;
    let weight = weight(gpu, (i, o), DType::BF16)?;
    let expected = upsampled_conv2d(&f32_of(&x)?, &weight, Some(&bias), None)?;
    let folded = hopper_weights::copy(gpu, &op, View::of(&weight)?, Form::Folded)?;
    let finish = || {
        Ok(Finish::<bf16> {
            bias: Some(View::of(&bias)?),
            ..Finish::default()
        })
    };
    let name = format!("upsampled_conv2d {b}×{h}×{w}, {i} to {o},");
    let expected = (&expected, ALLOWED_BF16);
    by_each_cut(gpu, &name, &work, (&x, &folded), finish, expected)
}
