//! The kernels at channels that do and do not divide into vectors.

use candle_core::Result;

use super::upsample_nearest2x;
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::{Row, compare, random};

pub fn check(gpu: &Gpu) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for shape in [[1, 1, 1, 1], [2, 5, 7, 3], [3, 9, 4, 40], [1, 33, 17, 512]] {
        let name = format!("upsample_nearest2x {shape:?}");
        rows.extend(compare(
            gpu,
            &name,
            &[random(1, &shape)?],
            &[],
            |maps, _| upsample_nearest2x(&maps[0]),
        )?);
    }
    Ok(rows)
}
