//! Checks the kernels of both pools: windows of VGG and Inception, overlapping, padded, and on maps
//! with odd sides.

use candle_core::Result;

use super::{avg_pool2d, max_pool2d};
use crate::ops::Padding;
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::{Row, compare, random};

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
    Ok(rows)
}
