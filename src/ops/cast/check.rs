//! Checks both kernels, each forward and as the other's gradient, at sizes that are and are not
//! multiples of eight.

use candle_core::{DType, Device, Result};

use crate::ops::arrange;
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::{Row, compare_f32, random, relative};

pub fn check(gpu: &Gpu) -> Result<Vec<Row>> {
    let there = Device::Cuda(gpu.device().clone());
    let mut rows = Vec::new();
    for shape in [&[1][..], &[3, 5, 7], &[2, 64, 33, 40], &[5, 1000, 999]] {
        let name = format!("cast {shape:?}");
        // There and back in f32: the gradient takes both kernels too.
        let both =
            |x: &candle_core::Tensor| arrange::cast(&arrange::cast(x, DType::BF16)?, DType::F32);
        rows.extend(compare_f32(
            gpu,
            &name,
            &[random(1, shape)?],
            &[],
            |maps, _| both(&maps[0]),
        )?);
        let x = random(1, shape)?;
        rows.push(Row {
            name: format!("{name}: the CPU's bits"),
            error: relative(&both(&x.to_device(&there)?)?, &both(&x)?)?,
            allowed: 0.0,
        });
    }
    Ok(rows)
}
