//! The kernel against the CPU's resize for Inception, at sizes below and above the result's.

use candle_core::{DType, Device, Result};
use image::{Rgb, RgbImage};

use crate::metrics::Preprocess;
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::{Row, relative};

pub fn check(gpu: &Gpu) -> Result<Vec<Row>> {
    let device = Device::Cuda(gpu.device().clone());
    let mut rows = Vec::new();
    for (w, h) in [(256, 256), (40, 301), (640, 13), (299, 299), (1, 1)] {
        let pixel = |n: u32, x: u32, y: u32| {
            Rgb([
                (x * 9 + n * 40) as u8,
                (y * 7 + x) as u8,
                (x * y + n * 11) as u8,
            ])
        };
        let images: Vec<RgbImage> = (0..3)
            .map(|n| RgbImage::from_fn(w, h, |x, y| pixel(n, x, y)))
            .collect();
        for preprocess in [Preprocess::Adm, Preprocess::PytorchFid] {
            let wrap = candle_core::Error::wrap;
            let expected = preprocess.apply(&images).map_err(wrap)?;
            for (dtype, allowed) in [(DType::F32, 1e-6), (DType::F16, 5e-4)] {
                let found = preprocess.apply_on(&images, &device, dtype).map_err(wrap)?;
                rows.push(Row {
                    name: format!("resample {w}×{h}, {}, {dtype:?}", preprocess.name()),
                    error: relative(&found, &expected)?,
                    allowed,
                });
            }
        }
    }
    Ok(rows)
}
