//! The kernel against the CPU, bit for bit: every value that bf16 has between -1.5 and 1.5,
//! patches, images that are no multiple of eight, and values that are not finite.

use candle_core::{DType, Device, Result, Tensor};
use half::bf16;

use super::byte;
use super::cuda::Bytes;
use crate::model::tokenizer::depth_to_space;
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::{Row, random};

pub fn check(gpu: &Gpu) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (shape, patch) in [
        ([3, 5, 7, 3], 1),
        ([2, 16, 24, 3], 1),
        ([1, 257, 64, 3], 1),
        ([2, 3, 5, 12], 2),
        ([2, 4, 8, 27], 3),
    ] {
        for dtype in [DType::F32, DType::BF16] {
            rows.push(compared(
                gpu,
                &(random(1, &shape)? * 0.6)?,
                patch,
                dtype,
                None,
            )?);
            rows.push(compared(gpu, &random(2, &shape)?, patch, dtype, Some(0))?);
        }
    }
    let every: Vec<f32> = (0..=u16::MAX)
        .map(|bits| bf16::from_bits(bits).to_f32())
        .filter(|x| x.abs() <= 1.5)
        .collect();
    let count = every.len() / 24 * 24;
    let every = Tensor::from_vec(every[..count].to_vec(), (1, count / 24, 8, 3), &Device::Cpu)?;
    for dtype in [DType::F32, DType::BF16] {
        rows.push(compared(gpu, &every, 1, dtype, None)?);
    }
    Ok(rows)
}

/// `maps` on the CPU and on the GPU, where image `bad` has a NaN.
fn compared(
    gpu: &Gpu,
    maps: &Tensor,
    patch: usize,
    dtype: DType,
    bad: Option<usize>,
) -> Result<Row> {
    let (b, h, w, c) = maps.dims4()?;
    let image = h * w * c;
    let rounded = maps.to_dtype(dtype)?.to_dtype(DType::F32)?;
    let mut values = rounded.flatten_all()?.to_vec1::<f32>()?;
    if let Some(bad) = bad {
        values[bad * image + image - 1] = f32::NAN;
    }
    let given = Tensor::from_vec(values, (b, h, w, c), &Device::Cpu)?;
    let expected = depth_to_space(&given, patch)?.flatten_all()?;
    let expected = expected.to_vec1::<f32>()?;
    let there = given
        .to_device(&Device::Cuda(gpu.device().clone()))?
        .to_dtype(dtype)?;
    let bytes = Bytes::new(gpu, [b, h, w, c], patch)?;
    bytes.write(gpu, &there)?;
    let mut differing = 0;
    for (i, (found, expected)) in bytes.read()?.iter().zip(expected.chunks(image)).enumerate() {
        differing += match found {
            Some(_) if bad == Some(i) => image,
            None if bad == Some(i) => 0,
            None => image,
            Some(found) => {
                let pairs = found.iter().zip(expected);
                pairs.filter(|&(&found, &x)| found != byte(x)).count()
            }
        };
    }
    Ok(Row {
        name: format!(
            "bytes {:?}, patch {patch}, {dtype:?}, bad {bad:?}",
            [b, h, w, c]
        ),
        error: differing as f64 / (b * image) as f64,
        allowed: 0.0,
    })
}
