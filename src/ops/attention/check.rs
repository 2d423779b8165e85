//! The tokenizer's wide head at odd numbers of positions.

use candle_core::Result;

use super::attention;
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::{Row, compare, random};

pub fn check(gpu: &Gpu) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (b, n, c) in [(2, 49, 64), (1, 256, 512), (3, 15, 96), (2, 1, 32)] {
        let maps = [random(1, &[b, n, 3 * c])?];
        let name = format!("attention, one head, {b}×{n}×{c}");
        rows.extend(compare(gpu, &name, &maps, &[], |maps, _| {
            attention(&maps[0], 1, None)
        })?);
    }
    Ok(rows)
}
