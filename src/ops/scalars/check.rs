//! Checks scalars of both types, some of them within larger tensors, in more than one launch.

use candle_core::{DType, Device, Result, Tensor};

use super::read_scalars;
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::{Row, random};

pub fn check(gpu: &Gpu) -> Result<Vec<Row>> {
    let there = Device::Cuda(gpu.device().clone());
    let on = |device: &Device| -> Result<Vec<f64>> {
        let values = random(1, &[200])?.to_device(device)?;
        let wide = values.to_dtype(DType::F64)?;
        let scalar = |i: usize| match i % 2 {
            0 => values.get(i),
            _ => wide.get(i),
        };
        let scalars = (0..200).map(scalar).collect::<Result<Vec<Tensor>>>()?;
        read_scalars(&scalars)
    };
    let (found, expected) = (on(&there)?, on(&Device::Cpu)?);
    Ok(vec![Row {
        name: "200 scalars: the CPU's bits".into(),
        error: f64::from(u8::from(found != expected)),
        allowed: 0.0,
    }])
}
