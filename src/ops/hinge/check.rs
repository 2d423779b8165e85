//! Checks the loss, its gradients and the shares at numbers of logits below and above a block's.

use candle_core::{Device, Result, Tensor};

use super::{hinge_discriminator, shares};
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::{ALLOWED_F32, Row, compare_f32, random, relative};

pub fn check(gpu: &Gpu) -> Result<Vec<Row>> {
    let there = Device::Cuda(gpu.device().clone());
    let mut rows = Vec::new();
    for (real, fake) in [
        (&[1][..], &[7][..]),
        (&[2, 15, 15, 1], &[3, 30, 30, 1]),
        (&[3, 31, 33, 1], &[1, 2, 2, 1]),
    ] {
        let maps = [(random(1, real)? * 2.0)?, (random(2, fake)? * 2.0)?];
        let name = format!("hinge {real:?} and {fake:?}");
        rows.extend(compare_f32(gpu, &name, &maps, &[], |maps, _| {
            hinge_discriminator(&maps[0], &maps[1])
        })?);
        let on = |device: &Device| -> Result<Tensor> {
            let [real, fake] = [0, 1].map(|i| maps[i].to_device(device));
            Tensor::stack(&shares(&real?, &fake?)?, 0)
        };
        rows.push(Row {
            name: format!("{name}: shares"),
            error: relative(&on(&there)?, &on(&Device::Cpu)?)?,
            allowed: ALLOWED_F32,
        });
    }
    Ok(rows)
}
