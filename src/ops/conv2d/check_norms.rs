//! Checks what convolutions and norms leave each other: a norm the sums of the gradient that it
//! writes, a convolution the tiles of its result, and its backward pass the first sums of the
//! norm's.

use std::cell::RefCell;
use std::rc::Rc;

use candle_core::{DType, Device, Result, Tensor, Var, bail};

use super::{conv2d, conv2d_add, upsampled_conv2d};
use crate::ops::channel_norm::left;
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::{ALLOWED_F32, Row, compare, random, relative};
use crate::ops::tape::{NormOf, Tape, note, note_norm, plain};
use crate::ops::{Activation, Padding, group_norm};

pub(super) fn check(gpu: &Gpu) -> Result<Vec<Row>> {
    let mut rows = biases(gpu)?;
    if gpu.is_hopper() {
        rows.extend(tiles(gpu)?);
        rows.extend(backward_sums(gpu)?);
    }
    Ok(rows)
}

/// A residual block between norms, whose backward passes leave the gradients of the biases: of a
/// convolution before a norm, of one with a residual, and of a 1×1 shortcut, which gets the same
/// gradient.
fn biases(gpu: &Gpu) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (b, h, w, i, o) in [
        (3, 9, 11, 32, 64),
        (2, 16, 16, 64, 96),
        (1, 37, 23, 96, 128),
        (2, 33, 31, 128, 192),
        (2, 7, 5, 192, 256),
        (1, 17, 19, 256, 512),
        (2, 6, 7, 24, 40),
        (1, 5, 3, 3, 33),
        (1, 64, 256, 32, 128),
        (3, 40, 40, 64, 128),
        (2, 72, 88, 32, 192),
    ] {
        let groups = o / if o % 2 == 0 { 2 } else { 3 };
        let kernel = |seed: u64, i: usize, taps: usize| {
            random(seed, &[o, i, taps, taps])? * (1.0 / ((i * taps * taps) as f64).sqrt())
        };
        let weights = [
            kernel(2, i, 3)?,
            random(3, &[o])?,
            kernel(4, o, 3)?,
            random(5, &[o])?,
            kernel(6, i, 1)?,
            random(7, &[o])?,
            (random(8, &[o])? + 1.0)?,
            random(9, &[o])?,
        ];
        let maps = [random(1, &[b, h, w, i])?];
        let name = format!("conv2d before norms {b}×{h}×{w}, {i} to {o}");
        rows.extend(compare(gpu, &name, &maps, &weights, |maps, weights| {
            let [w1, b1, w2, b2, w3, b3, scale, shift] = weights else {
                bail!("eight weights were given, not {}", weights.len());
            };
            let norm = |x: &Tensor| group_norm(x, scale, shift, groups, 1e-6, Activation::Silu);
            let (same, none) = (Padding::same(1), Padding::same(0));
            let y = norm(&conv2d(&maps[0], w1, Some(b1), 1, same)?)?;
            let shortcut = conv2d(&maps[0], w3, Some(b3), 1, none)?;
            let x = conv2d_add(&shortcut, &y, w2, Some(b2), 1, same, None)?;
            let y = norm(&x)?;
            conv2d_add(&x, &y, w2, Some(b2), 1, same, None)
        })?);
    }
    Ok(rows)
}

/// The tiles that Hopper's kernels leave of their results: mean and sum of squares around it of
/// every 64 positions, as they were rounded; and a norm by them against one that reads the map. The
/// sizes are some for each kernel that leaves tiles.
fn tiles(gpu: &Gpu) -> Result<Vec<Row>> {
    let device = Device::Cuda(gpu.device().clone());
    let there = |t: Tensor, dtype| t.to_device(&device)?.to_dtype(dtype);
    let mut rows = Vec::new();
    for (b, h, w, i, o, taps, upsampled) in [
        (1, 256, 40, 128, 96, 1, false),
        (3, 32, 256, 32, 192, 1, false),
        (33, 24, 8, 32, 512, 1, false),
        (4, 256, 40, 32, 96, 1, false),
        (16, 24, 256, 32, 40, 1, false),
        (3, 24, 256, 64, 40, 3, false),
        (2, 64, 256, 128, 128, 3, false),
        (1, 24, 256, 32, 40, 3, true),
        (33, 24, 8, 32, 40, 3, true),
    ] {
        let scale = 1.0 / ((i * taps * taps) as f64).sqrt();
        let x = there(random(1, &[b, h, w, i])?, DType::BF16)?;
        let weight = there((random(2, &[o, i, taps, taps])? * scale)?, DType::F32)?;
        // Means that are not small beside what lies around them.
        let bias = there((random(3, &[o])? * 3.0)?, DType::F32)?;
        let residual = there(random(4, &[b, h, w, o])?, DType::BF16)?;
        for add in [false, true] {
            if upsampled && add {
                continue;
            }
            let padding = Padding::same(taps / 2);
            let y = || match (upsampled, add) {
                (true, _) => upsampled_conv2d(&x, &weight, Some(&bias), None),
                (false, true) => conv2d_add(&residual, &x, &weight, Some(&bias), 1, padding, None),
                (false, false) => conv2d(&x, &weight, Some(&bias), 1, padding),
            };
            let kind = match (upsampled, add) {
                (true, _) => "upsampled_conv2d",
                (false, true) => "conv2d_add",
                (false, false) => "conv2d",
            };
            let name = format!("{kind} {b}×{h}×{w}, {i} to {o}, {taps}×{taps}: tiles");
            let map = y()?;
            let Some(left) = left::take(&map) else {
                bail!("{name}: were not left");
            };
            let count = map.elem_count() / (64 * o);
            let found = left.values.tensor((count, 2, o));
            let values = map.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
            let values = match upsampled {
                false => values,
                // The four parities of an image's rows and columns, one after the other.
                true => values
                    .reshape((b, h, 2, w, 2, o))?
                    .permute((0, 2, 4, 1, 3, 5))?
                    .contiguous()?,
            };
            let values = values.reshape((count, 64, o))?;
            let mean = values.mean_keepdim(1)?;
            let squares = values.broadcast_sub(&mean)?.sqr()?.sum(1)?;
            for (part, index, expected) in [
                ("mean", 0, mean.squeeze(1)?),
                ("squares around it", 1, squares),
            ] {
                rows.push(Row {
                    name: format!("{name}, {part}"),
                    error: relative(&found.narrow(1, index, 1)?.squeeze(1)?, &expected)?,
                    allowed: ALLOWED_F32,
                });
            }

            let (ones, map) = (weight.ones_like()?.flatten_all()?.narrow(0, 0, o)?, y()?);
            let norm = || group_norm(&map, &ones, &bias, o / 8, 1e-6, Activation::Silu);
            let by_tiles = norm()?;
            rows.push(Row {
                name: format!("{name}, a norm by them"),
                error: relative(&by_tiles, &norm()?)?,
                allowed: 1e-3,
            });
        }
    }
    Ok(rows)
}

/// What the backward pass of a convolution leaves for the norm that made its input: Σ dz and Σ
/// dz·x̂ of every 64 positions, of the gradient as it was rounded. The sizes are some for each
/// kernel that leaves them, with tiles that end inside an image and groups of 3 columns.
fn backward_sums(gpu: &Gpu) -> Result<Vec<Row>> {
    let device = Device::Cuda(gpu.device().clone());
    let there = |t: Tensor, dtype| t.to_device(&device)?.to_dtype(dtype);
    let here = |t: &Tensor| t.to_device(&Device::Cpu)?.to_dtype(DType::F64);
    let mut rows = Vec::new();
    for (b, h, w, c, o, taps, groups) in [
        (2, 64, 256, 128, 128, 3, 32), // lines_64
        (3, 24, 256, 40, 64, 3, 5),
        (3, 80, 88, 128, 96, 3, 32), // 192_128
        (3, 80, 88, 120, 128, 3, 40),
    ] {
        let shape = [b, h, w, c];
        let scale = 1.0 / ((c * taps * taps) as f64).sqrt();
        let weight = there((random(1, &[o, c, taps, taps])? * scale)?, DType::F32)?;
        let y = Var::from_tensor(&there(random(2, &shape)?, DType::BF16)?)?;
        let x = there(random(3, &shape)?, DType::BF16)?;
        let mean_variance = random(4, &[2, b, groups])?;
        let r = (random(5, &[1, b, groups])?.abs()? + 0.5)?;
        let moments = there(Tensor::cat(&[mean_variance, r], 0)?, DType::F32)?;
        let scale = there((random(6, &[c])? + 1.0)?, DType::F32)?;
        let shift = there(random(7, &[c])?, DType::F32)?;
        let upstream = there(random(8, &[b, h, w, o])?, DType::F32)?;

        let seen = Rc::new(RefCell::new(None));
        let tape = Tape::start();
        let input = (y.as_tensor() * 1.0)?;
        let watching = seen.clone();
        note(&[y.as_tensor()], &input, move |_, _, dy| {
            watching.replace(Some((dy.clone(), left::take_sums(dy))));
            Ok(vec![Some(dy.clone())])
        });
        note_norm(
            &input,
            NormOf {
                x: x.clone(),
                moments: moments.clone(),
                weight: scale.clone(),
                bias: shift.clone(),
            },
        );
        let result = conv2d(&input, &weight, None, 1, Padding::same(taps / 2))?;
        let loss = plain([&result], move |[result]| {
            (result.to_dtype(DType::F32)? * &upstream)?.sum_all()
        })?;
        drop((input, result));
        tape.backward(loss)?;

        let name = format!("conv2d {b}×{h}×{w}, {c} to {o}, after a norm in {groups}: sums left");
        let Some((dy, Some(left))) = seen.take() else {
            bail!("{name}: none were");
        };
        let blocks = b * h * w / 64;
        let found = left.values.tensor((blocks, 2, c));
        let of_columns = |index: usize| -> Result<Tensor> {
            here(&moments.get(index)?)?
                .reshape((b, groups, 1))?
                .broadcast_as((b, groups, c / groups))?
                .reshape((b, 1, c))
        };
        let map = |t: &Tensor| here(t)?.reshape((b, h * w, c));
        let normal = map(&x)?
            .broadcast_sub(&of_columns(0)?)?
            .broadcast_mul(&of_columns(2)?)?;
        let z = normal
            .broadcast_mul(&here(&scale)?)?
            .broadcast_add(&here(&shift)?)?;
        let sigmoid = (z.neg()?.exp()? + 1.0)?.recip()?;
        let slope = (&sigmoid * (((1.0 - &sigmoid)? * &z)? + 1.0)?)?;
        let dz = (map(&dy)? * slope)?;
        for (part, index, values) in [("Σ dz", 0, dz.clone()), ("Σ dz·x̂", 1, (dz * normal)?)] {
            let expected = values.reshape((blocks, 64, c))?.sum(1)?;
            rows.push(Row {
                name: format!("{name}, {part}"),
                error: relative(&found.narrow(1, index, 1)?.squeeze(1)?, &expected)?,
                allowed: ALLOWED_F32,
            });
        }
    }
    Ok(rows)
}
