//! Checks the kernels at sizes that are and are not multiples of eight.

use candle_core::Result;

use super::mean_squared_error;
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::{Row, compare, random};

pub fn check(gpu: &Gpu) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for shape in [&[1][..], &[3, 5, 7, 3], &[2, 64, 64, 3], &[2, 133, 99, 3]] {
        let maps = [random(1, shape)?, random(2, shape)?];
        let name = format!("mean_squared_error {shape:?}");
        rows.extend(compare(gpu, &name, &maps, &[], |maps, _| {
            mean_squared_error(&maps[0], &maps[1])
        })?);
    }
    Ok(rows)
}
