//! Checks the kernels at every team width, and where a norm is 0.

use candle_core::{Device, Result, Tensor};

use super::feature_distance;
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::{Row, compare, random};

pub fn check(gpu: &Gpu) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for shape in [
        [2, 5, 7, 64],
        [3, 17, 9, 40],
        [1, 33, 31, 128],
        [2, 3, 5, 256],
        [1, 9, 7, 512],
        [2, 4, 3, 13],
        [1, 3, 5, 1000],
        [4, 65, 67, 64],
    ] {
        let c = shape[3];
        // The first position of a is 0 in all channels, as it can be after a ReLU.
        let mut alive = vec![1f32; shape.iter().product()];
        alive[..c].fill(0.0);
        let a = (random(1, &shape)? * Tensor::from_vec(alive, &shape, &Device::Cpu)?)?;
        let maps = [a, random(2, &shape)?];
        let weight = random(3, &[c])?.abs()?;
        let there = weight.to_device(&Device::Cuda(gpu.device().clone()))?;
        let name = format!("feature_distance {shape:?}");
        rows.extend(compare(gpu, &name, &maps, &[], |maps, _| {
            let weight = if maps[0].device().is_cpu() {
                &weight
            } else {
                &there
            };
            feature_distance(&maps[0], &maps[1], weight)
        })?);
    }
    Ok(rows)
}
