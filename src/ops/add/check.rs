//! Checks the kernels at sizes that are and are not multiples of eight.

use candle_core::{Device, Result, Tensor};

use super::{add, add_scaled};
use crate::ops::arrange;
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::{Row, compare, random, relative};

pub fn check(gpu: &Gpu) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for shape in [&[1][..], &[3, 5, 7], &[2, 64, 64, 40], &[5, 1000, 999]] {
        let maps = [random(1, shape)?, random(2, shape)?];
        let name = format!("add {shape:?}");
        rows.extend(compare(gpu, &name, &maps, &[], |maps, _| {
            add(&maps[0], &maps[1])
        })?);
        let on = |device: &Device| -> Result<Tensor> {
            let [a, b] = [0, 1].map(|i| maps[i].to_device(device));
            add_scaled(&a?, &b?, &Tensor::new(0.1f64, device)?)
        };
        let there = Device::Cuda(gpu.device().clone());
        rows.push(Row {
            name: format!("add_scaled {shape:?}: the CPU's bits"),
            error: relative(&on(&there)?, &on(&Device::Cpu)?)?,
            allowed: 0.0,
        });
    }
    // Maps that begin within a vector.
    let maps = [random(1, &[1003])?, random(2, &[1003])?];
    rows.extend(compare(gpu, "add, from 3 on", &maps, &[], |maps, _| {
        let from_3 = |x: &Tensor| arrange::rearranged(x, x.narrow(0, 3, 1000)?, behind_3);
        add(&from_3(&maps[0])?, &from_3(&maps[1])?)
    })?);
    Ok(rows)
}

/// The gradient of a map from its fourth element on.
fn behind_3(dy: &Tensor, _: &Tensor) -> Result<Tensor> {
    dy.pad_with_zeros(0, 3, 0)
}
