//! Checks convolutions of odd sizes: kernels, strides and paddings of all networks here, with
//! channels that do and do not fill vectors.

use candle_core::{DType, Result, Tensor};

use super::{conv2d, conv2d_add, conv2d_relu, upsampled_conv2d};
use crate::ops::Padding;
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::{Row, compare, random};

/// (B, H, W, I, O, kh, kw, stride, padding)
type Case = (
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    Padding,
);

const CASES: [Case; 16] = [
    (2, 7, 9, 64, 72, 3, 3, 1, Padding::same(1)),
    (3, 8, 8, 96, 64, 3, 3, 1, Padding::same(1)),
    (1, 13, 6, 128, 128, 3, 3, 1, Padding::same(1)),
    (2, 16, 16, 192, 256, 3, 3, 1, Padding::same(1)),
    (2, 9, 7, 64, 64, 3, 3, 2, Padding::new(0, 1, 0, 1)),
    (2, 10, 12, 128, 96, 3, 3, 2, Padding::new(0, 1, 0, 1)),
    (1, 11, 11, 40, 48, 3, 3, 2, Padding::same(0)),
    (2, 8, 10, 64, 128, 4, 4, 2, Padding::same(1)),
    (1, 9, 9, 128, 64, 4, 4, 1, Padding::same(1)),
    (2, 5, 7, 64, 40, 1, 1, 1, Padding::same(0)),
    (2, 17, 17, 64, 64, 1, 7, 1, Padding::new(0, 0, 3, 3)),
    (2, 17, 17, 64, 64, 7, 1, 1, Padding::new(3, 3, 0, 0)),
    (1, 12, 12, 48, 64, 5, 5, 1, Padding::same(2)),
    (2, 9, 12, 3, 64, 3, 3, 1, Padding::same(1)),
    (2, 9, 12, 64, 3, 3, 3, 1, Padding::same(1)),
    (2, 9, 12, 64, 1, 4, 4, 1, Padding::same(1)),
];

pub fn check(gpu: &Gpu) -> Result<Vec<Row>> {
    let mut rows = fused(gpu)?;
    rows.extend(super::check_norms::check(gpu)?);
    for (b, h, w, i, o, kh, kw, stride, padding) in CASES {
        let name = format!("conv2d {b}×{h}×{w}, {i} to {o}, {kh}×{kw}, stride {stride}");
        let maps = [random(1, &[b, h, w, i])?];
        let scale = 1.0 / ((i * kh * kw) as f64).sqrt();
        let weights = [(random(2, &[o, i, kh, kw])? * scale)?, random(3, &[o])?];
        rows.extend(compare(gpu, &name, &maps, &weights, |maps, weights| {
            conv2d(&maps[0], &weights[0], Some(&weights[1]), stride, padding)
        })?);
    }
    Ok(rows)
}

/// Operations fused into a convolution, at sizes that a kernel does and does not support.
fn fused(gpu: &Gpu) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (b, h, w, i, o) in [
        (2, 8, 8, 64, 64),
        (1, 7, 9, 96, 128),
        (2, 16, 16, 128, 64),
        (1, 5, 6, 40, 24),
        (2, 8, 12, 64, 256),
        (2, 9, 11, 3, 64),
    ] {
        let scale = 1.0 / ((i * 9) as f64).sqrt();
        let weights = [
            in_bf16((random(2, &[o, i, 3, 3])? * scale)?)?,
            random(3, &[o])?,
        ];
        let maps = [random(1, &[b, h, w, i])?, random(4, &[b, h, w, o])?];
        let name = format!("{b}×{h}×{w}, {i} to {o}");
        let same = Padding::same(1);
        rows.extend(compare(
            gpu,
            &format!("conv2d_add {name}"),
            &maps,
            &weights,
            |maps, weights| conv2d_add(&maps[1], &maps[0], &weights[0], Some(&weights[1]), 1, same),
        )?);
        rows.extend(compare(
            gpu,
            &format!("upsampled_conv2d {name}"),
            &maps[..1],
            &weights,
            |maps, weights| upsampled_conv2d(&maps[0], &weights[0], Some(&weights[1])),
        )?);
        for slope in [0.0, 0.2] {
            rows.extend(compare(
                gpu,
                &format!("conv2d_relu {name}, slope {slope}"),
                &maps[..1],
                &weights,
                |maps, weights| {
                    conv2d_relu(&maps[0], &weights[0], Some(&weights[1]), 1, same, slope)
                },
            )?);
        }
    }
    Ok(rows)
}

/// Values that bf16 can represent: if the weights were rounded, a ReLU would cut other values than
/// the reference's.
fn in_bf16(x: Tensor) -> Result<Tensor> {
    x.to_dtype(DType::BF16)?.to_dtype(DType::F32)
}
