//! Checks the kernels of both pools: windows of VGG and Inception, overlapping, padded, and on maps
//! with odd sides.

use candle_core::Result;

use super::{avg_pool2d, max_pool2d};
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::{Row, compare, random};
use crate::ops::{Padding, add, conv2d_relu};

pub fn check(gpu: &Gpu) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (shape, kernel, stride, padding) in [
        ([2, 8, 6, 64], 2, 2, Padding::same(0)),
        ([3, 7, 9, 24], 2, 2, Padding::same(0)),
        ([1, 5, 4, 3], 2, 2, Padding::same(0)),
        ([2, 35, 35, 40], 3, 2, Padding::same(0)),
        ([2, 17, 11, 16], 3, 1, Padding::same(1)),
        ([1, 9, 10, 5], 3, 1, Padding::new(1, 0, 2, 1)),
        ([2, 13, 14, 8], 4, 3, Padding::new(0, 3, 1, 2)),
    ] {
        // Integers, so that windows have several largest values, and bf16 is exact.
        let x = [(random(1, &shape)? * 2.0)?.round()?];
        let name =
            |kind: &str| format!("{kind}_pool2d {shape:?} by {kernel}, {stride}, {padding:?}");
        rows.extend(compare(gpu, &name("max"), &x, &[], |maps, _| {
            max_pool2d(&maps[0], kernel, stride, padding)
        })?);
        rows.extend(compare(gpu, &name("avg"), &x, &[], |maps, _| {
            avg_pool2d(&maps[0], kernel, stride, padding)
        })?);
    }
    for (h, w, i, o) in [(8, 6, 64, 64), (7, 9, 64, 72), (5, 5, 24, 20)] {
        let name = format!("max_pool2d of a ReLU's {h}×{w}, {i} to {o}, beside another");
        // Whole numbers throughout: which of a window is the largest is a matter of no rounding.
        let whole = |seed, shape: &[usize], scale: f64| (random(seed, shape)? * scale)?.round();
        let maps = [whole(1, &[2, h, w, i], 1.0)?];
        let weights = [whole(2, &[o, i, 3, 3], 0.5)?, whole(3, &[o], 2.0)?];
        rows.extend(compare(gpu, &name, &maps, &weights, |maps, weights| {
            let (weight, bias) = (&weights[0], Some(&weights[1]));
            let x = conv2d_relu(&maps[0], weight, bias, 1, Padding::same(1), 0.0, None)?;
            let largest = max_pool2d(&x, 2, 2, Padding::same(0))?;
            // Its gradient reaches x first.
            add(&largest, &avg_pool2d(&x, 2, 2, Padding::same(0))?)
        })?);
    }
    Ok(rows)
}
