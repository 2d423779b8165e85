//! Checks Inception's convolutions in f16, one of each shape, at batches that take the different
//! tiles, and its pools and means, against the same in f32 on the same GPU.

use candle_core::{DType, Device, Result, Tensor};

use super::FrozenConv2d;
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::{Row, random, relative};
use crate::ops::{Padding, avg_pool2d, max_pool2d, mean_over_positions};

/// What rounding to f16 moves: 2⁻¹¹ at most, a value, and less on average.
const ALLOWED: f64 = 5e-4;

/// (H = W, I, O, (kh, kw), stride, whether padded)
type Case = (usize, usize, usize, (usize, usize), usize, bool);

const CASES: [Case; 22] = [
    (299, 3, 32, (3, 3), 2, false),
    (149, 32, 32, (3, 3), 1, false),
    (147, 32, 64, (3, 3), 1, true),
    (73, 64, 80, (1, 1), 1, true),
    (73, 80, 192, (3, 3), 1, false),
    (35, 192, 64, (1, 1), 1, true),
    (35, 288, 48, (1, 1), 1, true),
    (35, 48, 64, (5, 5), 1, true),
    (35, 64, 96, (3, 3), 1, true),
    (35, 96, 96, (3, 3), 1, true),
    (35, 96, 96, (3, 3), 2, false),
    (35, 288, 384, (3, 3), 2, false),
    (17, 768, 160, (1, 1), 1, true),
    (17, 160, 160, (1, 7), 1, true),
    (17, 160, 192, (7, 1), 1, true),
    (17, 192, 320, (3, 3), 2, false),
    (8, 1280, 448, (1, 1), 1, true),
    (8, 448, 384, (3, 3), 1, true),
    (8, 384, 384, (1, 3), 1, true),
    (8, 2048, 320, (1, 1), 1, true),
    (19, 16, 40, (3, 3), 1, true),
    (13, 5, 64, (5, 5), 2, false),
];

pub fn check(gpu: &Gpu) -> Result<Vec<Row>> {
    let mut rows = pooled(gpu)?;
    if !gpu.is_hopper() {
        return Ok(rows);
    }
    for (seed, (side, i, o)) in (1..).zip([(35, 192, 32), (17, 768, 192), (8, 1280, 192)]) {
        rows.push(of_average(gpu, seed, side, i, o)?);
    }
    for (seed, case) in (1..).zip(CASES) {
        for batch in [1, 3, 40] {
            // Maps of 40 images where they are small.
            if batch * case.0 * case.0 * case.1.max(case.2) > 40 << 20 {
                continue;
            }
            rows.extend(convolved(gpu, seed, batch, case)?);
        }
    }
    Ok(rows)
}

fn there(gpu: &Gpu, x: &Tensor) -> Result<Tensor> {
    x.to_device(&Device::Cuda(gpu.device().clone()))
}

fn convolved(gpu: &Gpu, seed: u64, batch: usize, case: Case) -> Result<Vec<Row>> {
    let (side, i, o, (kh, kw), stride, padded) = case;
    let padding = match padded {
        true => Padding::new(kh / 2, kh / 2, kw / 2, kw / 2),
        false => Padding::same(0),
    };
    let one = there(gpu, &random(seed, &[1, side, side, i])?)?.to_dtype(DType::F16)?;
    // Different images, without drawing them all.
    let images: Vec<Tensor> = (0..batch)
        .map(|n| &one * (1.0 - n as f64 / 64.0))
        .collect::<Result<_>>()?;
    let x = Tensor::cat(&images, 0)?.contiguous()?;
    let scale = (2.0 / (i * kh * kw) as f64).sqrt();
    let weight = (random(seed + 100, &[o, i, kh, kw])? * scale)?;
    let weight = there(gpu, &weight.to_dtype(DType::F16)?.to_dtype(DType::F32)?)?;
    let bias = there(gpu, &random(seed + 200, &[o])?)?;
    let layer = FrozenConv2d::new(&weight, &bias, stride, padding)?;
    let expected = layer.relu(&x.to_dtype(DType::F32)?)?;
    let (found, again) = (layer.relu(&x)?, layer.relu(&x)?);
    let name = format!("conv2d in f16, {batch}×{side}², {i} to {o}, {kh}×{kw}, stride {stride}");
    let row = |what: &str, error, allowed| Row {
        name: format!("{name}: {what}"),
        error,
        allowed,
    };
    Ok(vec![
        row("value", relative(&found, &expected)?, ALLOWED),
        row("the same twice", relative(&again, &found)?, 0.0),
    ])
}

/// A 1×1 convolution of averages, which in f16 is rounded once before them and once after.
fn of_average(gpu: &Gpu, seed: u64, side: usize, i: usize, o: usize) -> Result<Row> {
    let x = there(gpu, &random(seed, &[3, side, side, i])?)?.to_dtype(DType::F16)?;
    let weight = (random(seed + 100, &[o, i, 1, 1])? * (2.0 / i as f64).sqrt())?;
    let weight = there(gpu, &weight.to_dtype(DType::F16)?.to_dtype(DType::F32)?)?;
    let bias = there(gpu, &random(seed + 200, &[o])?)?;
    let layer = FrozenConv2d::new(&weight, &bias, 1, Padding::same(0))?;
    let of = |x: &Tensor| layer.relu_of_average(x, 3, Padding::same(1));
    Ok(Row {
        name: format!("conv2d of averages in f16, 3×{side}², {i} to {o}"),
        error: relative(&of(&x)?, &of(&x.to_dtype(DType::F32)?)?)?,
        allowed: 2.0 * ALLOWED,
    })
}

/// Pools and means in f16, with channels that do and do not fill vectors.
fn pooled(gpu: &Gpu) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for shape in [
        [2, 9, 7, 64],
        [3, 8, 8, 2048],
        [1, 5, 6, 13],
        [2, 17, 17, 300],
    ] {
        let x = there(gpu, &random(7, &shape)?)?.to_dtype(DType::F16)?;
        let exact = x.to_dtype(DType::F32)?;
        type Pool = fn(&Tensor) -> Result<Tensor>;
        let pools: [(&str, Pool, f64); 4] = [
            (
                "max, stride 2",
                |x| max_pool2d(x, 3, 2, Padding::same(0)),
                0.0,
            ),
            (
                "max, padded",
                |x| max_pool2d(x, 3, 1, Padding::same(1)),
                0.0,
            ),
            (
                "average",
                |x| avg_pool2d(x, 3, 1, Padding::same(1)),
                ALLOWED,
            ),
            ("means", mean_over_positions, 1e-6),
        ];
        for (name, pool, allowed) in pools {
            rows.push(Row {
                name: format!("pool in f16, {name}, {shape:?}"),
                error: relative(&pool(&x)?, &pool(&exact)?)?,
                allowed,
            });
        }
        let on_cpu = exact.to_device(&Device::Cpu)?.mean((1, 2))?;
        rows.push(Row {
            name: format!("means of f32, {shape:?}"),
            error: relative(&mean_over_positions(&exact)?, &on_cpu)?,
            allowed: 1e-5,
        });
    }
    Ok(rows)
}
