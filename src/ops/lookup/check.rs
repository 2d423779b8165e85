//! Checks the gradient of table rows: codes that no row uses, that rows of one tile or of many use,
//! and one that most rows use.

use candle_core::{Device, Result, Tensor};

use super::lookup;
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::{Row, compare_f32, random};

pub fn check(gpu: &Gpu) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (count, k, d, one_in) in [
        (1, 1, 1, 1),
        (37, 5, 3, 1),
        (1030, 2000, 16, 1),
        (9001, 300, 33, 1),
        (20_011, 4096, 64, 2),
    ] {
        let code = |i: u32| match i % one_in {
            0 => i.wrapping_mul(2_654_435_761) % k,
            _ => k / 2,
        };
        let codes: Vec<u32> = (0..count).map(code).collect();
        let codes = Tensor::new(codes, &Device::Cpu)?;
        let there = codes.to_device(&Device::Cuda(gpu.device().clone()))?;
        let table = random(1, &[k as usize, d])?;
        let name = format!("lookup of {count} rows in {k} by {d}, every {one_in}th elsewhere");
        rows.extend(compare_f32(gpu, &name, &[table], &[], |table, _| {
            let codes = if table[0].device().is_cpu() {
                &codes
            } else {
                &there
            };
            lookup(&table[0], codes)
        })?);
    }
    Ok(rows)
}
