//! Checks the kernels of L_quant, which use f32 throughout: value and gradients compared with the
//! CPU's.

use candle_core::{Device, Result, Tensor};

use super::{Quantized, Schedule, quantization_loss};
use crate::config::Reduction;
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::{Row, compare_f32, random};

pub fn check(gpu: &Gpu) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (shape, steps) in [([1, 1, 1, 3], 1), ([2, 3, 5, 7], 4), ([3, 16, 16, 24], 10)] {
        let all = [&[steps], &shape[..]].concat();
        let noisy = random(3, &all)?;
        let there = noisy.to_device(&Device::Cuda(gpu.device().clone()))?;
        let schedule = Schedule {
            alpha: (1..=steps).map(|t| t as f32 / steps as f32).collect(),
            beta: vec![0.1; steps],
        };
        let gamma = vec![0.7; steps];
        let f = |x: &[Tensor], _: &[Tensor]| {
            let noisy = if x[0].device().is_cpu() {
                &noisy
            } else {
                &there
            };
            let quantized = Quantized {
                codes: noisy.clone(),
                sums: noisy.clone(),
                noisy: noisy.clone(),
            };
            let reduction = Reduction::Mean;
            quantization_loss(&x[0], &x[1], &quantized, &schedule, &gamma, 0.25, reduction)
        };
        let maps = [random(1, &shape)?, random(2, &all)?];
        let name = format!("quantization_loss {all:?}");
        rows.extend(compare_f32(gpu, &name, &maps, &[], f)?);
    }
    Ok(rows)
}
