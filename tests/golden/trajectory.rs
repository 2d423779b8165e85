//! Ten training steps of the generator on given batches: warm-up, clipping, AdamW, EMA.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use rdpm::error::Result;
use rdpm::ops::optimizer::{AdamStep, adam_step};
use rdpm::ops::{cross_entropy, global_norm};
use serde::Deserialize;

use crate::fixture::Golden;
use crate::generator::build;

#[derive(Deserialize)]
struct Training {
    lr: f64,
    warmup_steps: u64,
    clip: f64,
    ema_decay: f64,
    betas: (f64, f64),
    weight_decay: f64,
}

impl Training {
    /// Step n, counted from 0.
    fn step(&self, n: usize, norm: f64) -> AdamStep {
        let warmup = (n + 1) as f64 / self.warmup_steps as f64;
        let decay = (1 + n) as f64 / (10 + n) as f64;
        AdamStep {
            lr: self.lr * warmup.min(1.0),
            beta1: self.betas.0,
            beta2: self.betas.1,
            eps: 1e-8,
            weight_decay: self.weight_decay,
            step: n as u64 + 1,
            grad_scale: (self.clip / (norm + 1e-6)).min(1.0) as f32,
            ema_decay: Some(self.ema_decay.min(decay) as f32),
        }
    }
}

#[test]
fn ten_steps_of_adamw_with_ema_are_those_of_pytorch() -> Result<()> {
    let golden = Golden::open("trajectory")?;
    let training: Training = golden.metadata("training")?;
    let (generator, params) = build(&golden)?;
    let (ema, m, v) = (
        params.deep_copy()?,
        params.zeros_like()?,
        params.zeros_like()?,
    );
    let (noise, sum) = (golden.map("noise")?, golden.map("sum")?);
    let (labels, t) = (golden.index("labels")?, golden.index("t")?);
    let codes = golden.index("codes")?;
    let (mut all, mut norms) = (Vec::new(), Vec::new());
    for n in 0..noise.dim(0)? {
        let condition = generator.condition(&labels.get(n)?, &t.get(n)?)?;
        let logits = generator.forward(&noise.get(n)?, &sum.get(n)?, &condition)?;
        let targets = codes.get(n)?.flatten_all()?;
        let loss = cross_entropy(&logits.flatten_to(1)?, &targets)?
            .loss
            .mean_all()?;
        let store = loss.backward()?;
        let mut grads = BTreeMap::new();
        for (name, var) in params.iter() {
            let grad = store.get(var).expect("every parameter has a gradient");
            grads.insert(name, grad);
        }
        let norm = global_norm(grads.values().copied())?.to_scalar::<f64>()?;
        let step = training.step(n, norm);
        for (name, var) in params.iter() {
            let [m, v, ema] = [&m, &v, &ema].map(|p| p.get(name).expect("the same names"));
            let weight_decay = match var.rank() {
                0 | 1 => 0.0,
                _ => step.weight_decay,
            };
            let step = AdamStep {
                weight_decay,
                ..step
            };
            adam_step(var, grads[name], m, v, Some(ema), &step)?;
        }
        all.push(loss.to_scalar::<f32>()?);
        norms.push(norm as f32);
    }
    golden.check("losses", &Tensor::new(all, &Device::Cpu)?)?;
    golden.check("norms", &Tensor::new(norms, &Device::Cpu)?)?;
    for (prefix, found) in [("final", &params), ("ema", &ema)] {
        for (name, expected) in golden.under(prefix) {
            let found = found.get(&name).expect("the same names");
            golden.check_against(&format!("{prefix}.{name}"), found.as_tensor(), &expected)?;
        }
    }
    Ok(())
}
