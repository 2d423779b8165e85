//! The kernels against the CPU, bit by bit, at widths that are and are not whole words, and through
//! more copies than there are buffers.

use candle_core::{Device, Result};

use super::{Bytes, Pixels};
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::Row;

pub fn check(gpu: &Gpu) -> Result<Vec<Row>> {
    let device = Device::Cuda(gpu.device().clone());
    let (mut here, mut there) = (Pixels::new(&Device::Cpu), Pixels::new(&device));
    let mut rows = Vec::new();
    for (b, height, width) in [(1, 1, 1), (3, 5, 7), (2, 9, 12), (5, 64, 64), (4, 33, 100)] {
        let image = 3 * height * width;
        let mut all = Vec::new();
        // Five in a row: a buffer is used again while its copy may still be under way.
        for round in 0..5usize {
            let bytes: Vec<u8> = (0..b * image)
                .map(|i| (i * 7 + i / 256 + 31 * round) as u8)
                .collect();
            let images: Vec<&[u8]> = bytes.chunks(image).collect();
            let mirrored: Vec<bool> = (0..b).map(|i| (i + round) % 2 == 0).collect();
            let bytes = Bytes {
                height,
                width,
                images: &images,
                mirrored: &mirrored,
            };
            all.push((there.tensor(bytes)?, here.tensor(bytes)?));
        }
        let mut differing = 0;
        for (found, expected) in all {
            let bits = |t: &candle_core::Tensor| -> Result<Vec<u32>> {
                let values: Vec<f32> = t.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?;
                Ok(values.into_iter().map(f32::to_bits).collect())
            };
            let (found, expected) = (bits(&found)?, bits(&expected)?);
            differing += expected.len().abs_diff(found.len());
            differing += found.iter().zip(&expected).filter(|(a, b)| a != b).count();
        }
        rows.push(Row {
            name: format!("pixels {b} of {height}×{width}: values that differ"),
            error: differing as f64,
            allowed: 0.0,
        });
    }
    Ok(rows)
}
