//! Checks the kernels with groups of 1 to 300 channels, rows that do and do not divide into
//! vectors, and one tile, several, or none per image.

use std::cell::RefCell;
use std::rc::Rc;

use candle_core::{DType, Device, Result, Tensor, Var, bail};

use super::group_norm;
use crate::ops::column_sums::known::recall;
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::{ALLOWED_F32, Row, compare, random, relative};
use crate::ops::tape::{note, plain};
use crate::ops::{Activation, Tape, add};

pub fn check(gpu: &Gpu) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (shape, groups, activation) in [
        ([2, 5, 7, 96], 32, Activation::Silu),
        ([3, 1, 1, 64], 4, Activation::None),
        ([1, 3, 2, 6], 3, Activation::Silu),
        ([2, 37, 23, 64], 32, Activation::LeakyRelu(0.2)),
        ([2, 129, 67, 128], 32, Activation::Silu),
        ([3, 9, 31, 128], 128, Activation::None),
        ([1, 11, 13, 300], 1, Activation::Silu),
        ([1, 19, 5, 33], 11, Activation::LeakyRelu(0.2)),
        ([2, 31, 3, 2304], 16, Activation::None),
        ([1, 40, 33, 64], 4, Activation::None),
        ([2, 16, 16, 64], 4, Activation::None),
        ([2, 15, 16, 128], 32, Activation::Silu),
        ([1, 15, 15, 64], 8, Activation::LeakyRelu(0.2)),
        ([2, 16, 16, 192], 32, Activation::Silu),
        // More than the blocks of a card hold at a time.
        ([100, 33, 31, 64], 32, Activation::Silu),
    ] {
        let c = shape[3];
        // Far enough from 0 that computing E[x²] − E[x]² would lose digits.
        let x = ((random(1, &shape)? * 2.0)? + 5.0)?;
        let weights = [(random(2, &[c])? + 1.0)?, random(3, &[c])?];
        let name = format!("group_norm {shape:?} in {groups}, {activation:?}");
        rows.extend(compare(gpu, &name, &[x], &weights, |maps, weights| {
            group_norm(&maps[0], &weights[0], &weights[1], groups, 1e-6, activation)
        })?);
    }
    // The gradient that bypasses the norm reaches its input first, and the norm's backward pass
    // adds it.
    for (shape, groups) in [
        ([2, 5, 7, 96], 32),
        ([2, 16, 16, 64], 8),
        ([1, 40, 33, 64], 4),
        ([1, 11, 13, 33], 3),
        ([100, 33, 31, 64], 32),
    ] {
        let weights = [(random(2, &shape[3..])? + 1.0)?, random(3, &shape[3..])?];
        let name = format!("group_norm {shape:?} in {groups} and what goes past it");
        let maps = [random(1, &shape)?, random(4, &shape)?];
        rows.extend(compare(gpu, &name, &maps, &weights, |maps, weights| {
            let x = add(&maps[0], &maps[1])?;
            let silu = Activation::Silu;
            let y = group_norm(&x, &weights[0], &weights[1], groups, 1e-6, silu)?;
            add(&x, &y)
        })?);
    }
    for (shape, groups) in [
        ([3, 17, 19, 32], 4),
        ([2, 16, 16, 64], 8),
        ([2, 37, 23, 64], 32),
        ([1, 40, 33, 96], 32),
        ([33, 9, 31, 128], 32),
        ([100, 33, 31, 64], 32),
        ([2, 129, 67, 128], 32),
        ([2, 16, 16, 192], 32),
        ([2, 21, 35, 192], 32),
        ([3, 33, 31, 256], 32),
        ([2, 16, 16, 512], 32),
        ([1, 33, 35, 512], 32),
        ([2, 11, 13, 33], 11),
        ([2, 31, 3, 2304], 16),
    ] {
        for dtype in [DType::F32, DType::BF16] {
            for past in [false, true] {
                rows.push(sums_of_gradient(gpu, shape, groups, dtype, past)?);
            }
        }
    }
    Ok(rows)
}

/// The sums that the backward pass leaves for whoever made its input are those of the gradient that
/// it wrote, as it was rounded; with `past`, of one with the gradient that goes past the norm.
fn sums_of_gradient(
    gpu: &Gpu,
    shape: [usize; 4],
    groups: usize,
    dtype: DType,
    past: bool,
) -> Result<Row> {
    let device = Device::Cuda(gpu.device().clone());
    let c = shape[3];
    let var = |t: Tensor, dtype| Var::from_tensor(&t.to_device(&device)?.to_dtype(dtype)?);
    let x = var(random(1, &shape)?, dtype)?;
    let weight = var((random(2, &[c])? + 1.0)?, DType::F32)?;
    let bias = var(random(3, &[c])?, DType::F32)?;
    let upstream = random(4, &shape)?.to_device(&device)?;

    let seen = Rc::new(RefCell::new(None));
    let tape = Tape::start();
    let input = (x.as_tensor() * 1.0)?;
    let watching = seen.clone();
    note(&[x.as_tensor()], &input, move |_, _, dx| {
        watching.replace(Some((dx.clone(), recall(dx))));
        Ok(vec![Some(dx.clone())])
    });
    let silu = Activation::Silu;
    let mut y = group_norm(&input, &weight, &bias, groups, 1e-6, silu)?;
    if past {
        y = add(&input, &y)?;
    }
    let loss = plain([&y], move |[y]| {
        (y.to_dtype(DType::F32)? * &upstream)?.sum_all()
    })?;
    drop(y);
    tape.backward(loss)?;

    let beside = if past { ", and past it" } else { "" };
    let name = format!("group_norm {shape:?} in {groups}{beside}, {dtype:?}: sums of the gradient");
    let Some((dx, Some(sums))) = seen.take() else {
        bail!("{name}: were not left");
    };
    let dx = dx.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
    Ok(Row {
        name,
        error: relative(&sums, &dx.reshape(((), c))?.sum(0)?)?,
        allowed: ALLOWED_F32,
    })
}
