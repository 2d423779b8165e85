//! Checks Adam on many tensors at odd sizes, with and without the average, and the norm of their
//! gradients: bit-identical to the CPU.

use candle_core::{Device, Result, Tensor, Var};

use super::{AdamStep, Trained, adam_step_all, global_norm};
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::{Row, random, relative};

/// Parameter, moments and average of each tensor.
type State = Vec<[Var; 4]>;

fn state(shapes: &[Vec<usize>], device: &Device) -> Result<State> {
    let one = |(i, shape): (usize, &Vec<usize>)| -> Result<[Var; 4]> {
        let param = random(i as u64, shape)?.to_device(device)?;
        Ok([
            Var::from_tensor(&param)?,
            Var::from_tensor(&param.zeros_like()?)?,
            Var::from_tensor(&param.zeros_like()?)?,
            Var::from_tensor(&param.copy()?)?,
        ])
    };
    shapes.iter().enumerate().map(one).collect()
}

fn steps(state: &State, grads: &[Tensor], average: bool) -> Result<()> {
    for step in 1..=3 {
        let step = AdamStep {
            lr: 0.01,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.0,
            step,
            grad_scale: 0.5,
            ema_decay: average.then_some(0.9),
        };
        let all: Vec<Trained> = state
            .iter()
            .zip(grads)
            .map(|([param, m, v, ema], grad)| Trained {
                param,
                grad,
                m,
                v,
                ema: average.then_some(ema),
                weight_decay: if param.rank() > 1 { 0.03 } else { 0.0 },
            })
            .collect();
        adam_step_all(&all, &step)?;
    }
    Ok(())
}

pub fn check(gpu: &Gpu) -> Result<Vec<Row>> {
    let there = Device::Cuda(gpu.device().clone());
    // More tensors than one launch can list, from one element to several blocks.
    let mut shapes: Vec<Vec<usize>> = (1..150).map(|i| vec![i * i % 97 + 1]).collect();
    shapes.extend([vec![64, 64, 3, 3], vec![4096], vec![1031, 17]]);
    let grads: Vec<Tensor> = (0..shapes.len())
        .map(|i| random(1000 + i as u64, &shapes[i]))
        .collect::<Result<_>>()?;
    let on_gpu: Vec<Tensor> = grads
        .iter()
        .map(|g| g.to_device(&there))
        .collect::<Result<_>>()?;
    let mut rows = Vec::new();
    for average in [true, false] {
        let (expected, found) = (state(&shapes, &Device::Cpu)?, state(&shapes, &there)?);
        steps(&expected, &grads, average)?;
        steps(&found, &on_gpu, average)?;
        for (i, part) in ["parameters", "first moments", "second moments", "average"]
            .into_iter()
            .enumerate()
        {
            let all = |state: &State| -> Result<Tensor> {
                let flat = state.iter().map(|s| s[i].as_tensor().flatten_all());
                Tensor::cat(&flat.collect::<Result<Vec<_>>>()?, 0)
            };
            rows.push(Row {
                name: format!("adam_step_all, average {average}: {part}"),
                error: relative(&all(&found)?, &all(&expected)?)?,
                allowed: 0.0,
            });
        }
    }
    let norm = |grads| global_norm(grads)?.to_scalar::<f64>();
    let (found, expected) = (norm(&on_gpu)?, norm(&grads)?);
    rows.push(Row {
        name: "global_norm".into(),
        error: (found - expected).abs() / expected,
        allowed: 1e-12,
    });
    Ok(rows)
}
