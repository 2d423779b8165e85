//! Checks averages of several sizes, and more than one launch lists, against the CPU's bits.

use candle_core::{Device, Result, Tensor, Var};

use super::{Running, update_averages};
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::{Row, random, relative};

pub fn check(gpu: &Gpu) -> Result<Vec<Row>> {
    let there = Device::Cuda(gpu.device().clone());
    let on = |device: &Device| -> Result<Vec<Tensor>> {
        let mut values = Vec::new();
        for i in 0..70u64 {
            let shape = [1 + 37 * i as usize % 700];
            let average = Var::from_tensor(&random(i, &shape)?.to_device(device)?)?;
            values.push((average, random(100 + i, &shape)?.to_device(device)?));
        }
        let running: Vec<Running> = values
            .iter()
            .enumerate()
            .map(|(i, (average, now))| Running {
                average,
                now: (i % 3 != 2).then_some(now),
                keep: if i % 3 == 2 { 1.0 } else { 0.9 },
                rate: if i % 3 == 2 { 1.0 } else { 0.1 },
            })
            .collect();
        update_averages(&running)?;
        Ok(values
            .iter()
            .map(|(average, _)| average.as_detached_tensor())
            .collect())
    };
    let (found, expected) = (on(&there)?, on(&Device::Cpu)?);
    let mut error = 0f64;
    for (found, expected) in found.iter().zip(&expected) {
        error += relative(found, expected)?;
    }
    Ok(vec![Row {
        name: "running averages: the CPU's bits".into(),
        error,
        allowed: 0.0,
    }])
}
