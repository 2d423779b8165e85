//! Checks the kernels at sizes that are and are not multiples of eight.

use candle_core::Result;

use super::add;
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::{Row, compare, random};

pub fn check(gpu: &Gpu) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for shape in [&[1][..], &[3, 5, 7], &[2, 64, 64, 40], &[5, 1000, 999]] {
        let maps = [random(1, shape)?, random(2, shape)?];
        let name = format!("add {shape:?}");
        rows.extend(compare(gpu, &name, &maps, &[], |maps, _| {
            add(&maps[0], &maps[1])
        })?);
    }
    Ok(rows)
}
