//! The kernels from f32 to both types, at sizes that do and do not fill vectors of eight.

use candle_core::{DType, Device, Result};

use super::standardize;
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::{ALLOWED_BF16, Row, compare_f32, random};

pub fn check(gpu: &Gpu) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for shape in [[1, 1, 1, 3], [2, 5, 7, 3], [3, 64, 65, 3], [1, 9, 9, 11]] {
        let c = shape[3];
        let (shift, scale) = (random(2, &[c])?, (random(3, &[c])?.abs()? + 0.5)?);
        let there = Device::Cuda(gpu.device().clone());
        let (shift_there, scale_there) = (shift.to_device(&there)?, scale.to_device(&there)?);
        for dtype in [DType::F32, DType::BF16] {
            let name = format!("standardize {shape:?} to {dtype:?}");
            let found = compare_f32(
                gpu,
                &name,
                &[random(1, &shape)?],
                &[],
                |maps, _| match maps[0].device().is_cpu() {
                    true => standardize(&maps[0], &shift, &scale, dtype),
                    false => standardize(&maps[0], &shift_there, &scale_there, dtype),
                },
            )?;
            rows.extend(found.into_iter().map(|row| match (dtype, row.allowed) {
                (DType::BF16, allowed) if allowed > 0.0 => Row {
                    allowed: ALLOWED_BF16,
                    ..row
                },
                _ => row,
            }));
        }
    }
    Ok(rows)
}
