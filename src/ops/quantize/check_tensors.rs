//! Checks the quantizer of tensors: Algorithm 1 on the GPU against the CPU, at sizes that the
//! kernels support and at others.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::{Codebook, Noise, Schedule, quantize_until, recurrent_quantize};
use crate::config::ScheduleConfig;
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::Row;
use crate::ops::cuda::operands::{relative, share_that_differs};
use crate::rng::{Purpose, normal};

/// Codes, v_t, z'_t and the examples stopped at t, with given noise and with drawn; the share of
/// codes that differ.
///
/// A code may differ at a tie, and what follows it then differs too.
pub fn check(gpu: &Arc<Gpu>) -> Result<Vec<Row>> {
    let there = Device::Cuda(gpu.device().clone());
    let mut rows = Vec::new();
    for (b, h, w, d, k, steps, bias) in [
        (3, 16, 16, 32, 4096, 10, true),
        (4, 7, 9, 16, 500, 6, false),
        (2, 20, 20, 32, 600, 4, true), // more positions than a block holds
        (3, 5, 6, 8, 300, 5, true),    // a width that it does not hold
        (2, 17, 16, 12, 90, 3, false), // both, and no convolution
        (2, 3, 4, 6, 50, 3, true),     // and one that no kernel serves
    ] {
        let random = |seed, shape: &[usize], std: f64| {
            normal(seed, Purpose::Init, &[0], 0, shape, &Device::Cpu)?.squeeze(0)? * std
        };
        let embedding = random(1, &[k, d], 0.5)?;
        let convolution = match bias {
            true => Some((random(2, &[d, d, 3, 3], 0.02)?, random(3, &[d], 0.02)?)),
            false => None,
        };
        let codebook = |device: &Device| {
            let moved = |x: &Tensor| x.to_device(device);
            let bias = convolution.as_ref();
            Ok::<_, candle_core::Error>(Codebook {
                embedding: moved(&embedding)?,
                bias: bias
                    .map(|(weight, bias)| {
                        Ok::<_, candle_core::Error>((moved(weight)?, moved(bias)?))
                    })
                    .transpose()?,
            })
        };
        let schedule = Schedule::new(&ScheduleConfig::default(), steps);
        let v = random(4, &[b, h, w, d], 1.0)?;
        let given = random(5, &[steps, b, h, w, d], 1.0)?;
        let indices: Vec<u64> = (0..b as u64).map(|i| (i << 33) + 5).collect();
        let t: Vec<u32> = (0..b).map(|i| 1 + ((i + 1) % steps) as u32).collect();
        for (source, is_drawn) in [("given", false), ("drawn", true)] {
            let computed = |device: &Device| {
                let (v, given) = (v.to_device(device)?, given.to_device(device)?);
                let noise = match is_drawn {
                    true => Noise::Drawn {
                        seed: 11,
                        indices: &indices,
                    },
                    false => Noise::Given(&given),
                };
                let codebook = codebook(device)?;
                let all = recurrent_quantize(&v, &codebook, &noise, &schedule)?;
                let one = quantize_until(&v, &codebook, &noise, &schedule, &t)?;
                let codes = Tensor::cat(&[all.codes.flatten_all()?, one.codes.flatten_all()?], 0)?;
                let values = [all.noisy, all.sums, one.noise, one.sum];
                let values = values.map(|x| x.flatten_all()?.to_vec1::<f32>());
                let values = values.into_iter().collect::<Result<Vec<_>>>()?;
                Ok::<_, candle_core::Error>((codes.to_vec1::<u32>()?, values))
            };
            let (codes, values) = computed(&there)?;
            let (expected_codes, expected) = computed(&Device::Cpu)?;
            let name = |what: &str| {
                format!(
                    "quantizer of tensors, {b} maps {h}×{w} of {d}, {k} codes, {steps} steps, {source} noise: {what}"
                )
            };
            rows.push(Row {
                name: name("codes, share that differ"),
                error: share_that_differs(&codes, &expected_codes),
                allowed: 2e-3,
            });
            let worst = values.iter().zip(&expected).map(|(a, b)| relative(a, b));
            rows.push(Row {
                name: name("v_t, z'_t, and ε_t, z'_{t−1} of the examples, the worst"),
                error: worst.fold(0.0, f64::max),
                allowed: 2e-2,
            });
        }
    }
    Ok(rows)
}
