//! Checks what convolutions and norms leave each other: a norm the sums of the gradient that it
//! writes, a convolution the tiles of its result.

use candle_core::{DType, Device, Result, Tensor, bail};

use super::{conv2d, conv2d_add, upsampled_conv2d};
use crate::ops::channel_norm::left;
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::{ALLOWED_F32, Row, compare, random, relative};
use crate::ops::{Activation, Padding, group_norm};

pub(super) fn check(gpu: &Gpu) -> Result<Vec<Row>> {
    let mut rows = biases(gpu)?;
    if gpu.is_hopper() {
        rows.extend(tiles(gpu)?);
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
