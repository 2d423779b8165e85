//! Checks the kernels with groups of 1 to 300 channels, rows that do and do not divide into
//! vectors, and one tile, several, or none per image.

use candle_core::Result;

use super::group_norm;
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::{Row, compare, random};
use crate::ops::{Activation, add};

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
    Ok(rows)
}
