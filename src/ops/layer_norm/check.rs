//! Checks the kernels with rows of one lane and of several iterations of all lanes, fewer rows and
//! more than a tile.

use candle_core::Result;

use super::layer_norm;
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::{Row, compare, random};

pub fn check(gpu: &Gpu) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for shape in [
        &[1, 2][..],
        &[3, 5, 8],
        &[2, 31, 37, 24],
        &[1030, 64],
        &[77, 300],
        &[9, 1000],
    ] {
        let c = shape[shape.len() - 1];
        let x = ((random(1, shape)? * 2.0)? + 5.0)?;
        let weights = [(random(2, &[c])? + 1.0)?, random(3, &[c])?];
        let name = format!("layer_norm {shape:?}");
        rows.extend(compare(gpu, &name, &[x], &weights, |maps, weights| {
            layer_norm(&maps[0], &weights[0], &weights[1], 1e-5)
        })?);
    }
    Ok(rows)
}
