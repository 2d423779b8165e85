//! Checks the kernel against candle's concatenation, which also takes over what the kernel does
//! not.

use candle_core::{DType, Device, Result, Tensor};

use super::concatenate;
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::{Row, random, relative};

pub fn check(gpu: &Gpu) -> Result<Vec<Row>> {
    let device = Device::Cuda(gpu.device().clone());
    let mut rows = Vec::new();
    let cases: [(usize, usize, usize, &[usize]); 6] = [
        (2, 5, 7, &[64, 64, 96, 32]),
        (3, 8, 8, &[320, 384, 384, 384, 384, 192]),
        (1, 1, 1, &[8, 8]),
        (2, 17, 17, &[192, 8, 16, 40, 128]),
        (1, 3, 5, &[13, 8]),
        (1, 3, 5, &[8; 7]),
    ];
    for (b, h, w, channels) in cases {
        let maps = (1..)
            .zip(channels)
            .map(|(seed, &c)| random(seed, &[b, h, w, c])?.to_dtype(DType::F16))
            .collect::<Result<Vec<_>>>()?;
        let there = |map: &Tensor| map.to_device(&device);
        let there = maps.iter().map(there).collect::<Result<Vec<_>>>()?;
        rows.push(Row {
            name: format!("concatenate {b}×{h}×{w}, channels {channels:?}"),
            error: relative(&concatenate(&there)?, &Tensor::cat(&maps, 3)?)?,
            allowed: 0.0,
        });
    }
    Ok(rows)
}
