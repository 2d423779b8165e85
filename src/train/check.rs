//! The optimizer's part of `rdpm doctor --check-ops`: updates of a flat buffer on the GPU, compared
//! with [`Optimizer`] on the CPU.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Result, Shape, Tensor};

use super::optimizer::{ADAM_EPS, FIRST, Optimizer, SECOND};
use super::stage::clip;
use crate::config::TrainConfig;
use crate::model::generator::fused::Flat;
use crate::ops::cuda::compare::Row;
use crate::ops::cuda::operands::{bits, relative, row, share_that_differs};
use crate::ops::cuda::{Buffer, Gpu};
use crate::ops::global_norm;
use crate::ops::optimizer::flat::{Adam, CONTROL, CONTROL_SKIPPED, FlatTrained, PARTIALS, adamw};
use crate::rng::{Purpose, Stream};
use crate::store::{Init, Scope};

const ALLOWED: f64 = 1e-5;

/// Four updates at odd sizes: one with clipping, one without, one with gradients that are not
/// finite, and one after it.
pub fn optimizer(gpu: &Arc<Gpu>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    // Sizes below one block, and above one pass of all blocks of the norm kernel.
    for [high, wide, long] in [[7, 9, 13], [1031, 1021, 515]] {
        rows.extend(updates(gpu, [high, wide, long])?);
    }
    Ok(rows)
}

fn updates(gpu: &Arc<Gpu>, [high, wide, long]: [usize; 3]) -> Result<Vec<Row>> {
    let config = TrainConfig {
        clip: 1.5,
        ..TrainConfig::generator()
    };
    let shapes = [
        ("a.weight", Shape::from((high, wide))),
        ("b.bias", long.into()),
    ];
    let scope = Scope::init(5, &Device::Cpu);
    for (name, shape) in &shapes {
        scope.get(
            name,
            shape.clone(),
            Init::Normal {
                mean: 0.0,
                std: 0.3,
            },
        )?;
    }
    let wrap = candle_core::Error::wrap;
    let mut on_cpu = Optimizer::new(scope.finish(), &config, true).map_err(wrap)?;
    let flat = Flat::new(shapes.map(|(name, shape)| (name.to_string(), shape)), 0);
    let start = Buffer::from_host(gpu, &flat.gather(&on_cpu.params.tensors())?)?;
    let zeros = || Buffer::<f32>::zeros(gpu, flat.len);
    let (first, second, average) = (zeros()?, zeros()?, zeros()?);
    average.copy_from(&start)?;
    let bf16_weights = Buffer::<half::bf16>::zeros(gpu, flat.len)?;
    let (mut gradients, partials) = (zeros()?, Buffer::<f32>::zeros(gpu, PARTIALS)?);
    let mut control = Buffer::<f32>::zeros(gpu, CONTROL)?;
    let adam = Adam {
        beta1: config.betas.0 as f32,
        beta2: config.betas.1 as f32,
        eps: ADAM_EPS as f32,
        weight_decay: config.weight_decay as f32,
    };
    let mut rows = Vec::new();
    let name =
        |step, what: &str| format!("optimizer, {} parameters, update {step}: {what}", flat.len);
    for (step, size) in [1.0, 1e-6, f32::INFINITY, 0.01].into_iter().enumerate() {
        let drawn = drawn(&flat, step as u64, size)?;
        let lr = 1e-3 * (step + 1) as f64;
        gradients.write(&flat.gather(&drawn)?)?;
        control.write(&[lr as f32, config.clip as f32, config.ema_decay as f32])?;
        let counts = [flat.decayed, flat.len];
        let before = start.read()?;
        let at = FlatTrained {
            gradients: gradients.view(),
            parameters: start.view_mut(),
            first: first.view_mut(),
            second: second.view_mut(),
            average: average.view_mut(),
            bf16_weights: bf16_weights.view_mut(),
        };
        adamw(
            gpu,
            at,
            &adam,
            counts,
            partials.view_mut(),
            control.view_mut(),
        )?;
        let norm = global_norm(drawn.values())?.to_scalar::<f64>()?;
        if norm.is_finite() {
            on_cpu
                .update(&drawn, lr, clip(config.clip, norm))
                .map_err(wrap)?;
        } else {
            let changed = share_that_differs(&bits(&before), &bits(&start.read()?));
            rows.push(row(
                name(step, "parameters changed by gradients that are not finite"),
                changed,
                0.0,
            ));
        }
        let said = control.read()?;
        if norm.is_finite() {
            let error = (f64::from(said[3]).sqrt() - norm).abs() / norm;
            rows.push(row(name(step, "norm"), error, ALLOWED));
        }
        let skipped = f64::from(said[CONTROL_SKIPPED]) - if norm.is_finite() { 0.0 } else { 1.0 };
        rows.push(row(name(step, "updates skipped"), skipped.abs(), 0.0));
        let state = on_cpu.state();
        let moment = |prefix: &str| -> BTreeMap<String, Tensor> {
            state
                .iter()
                .filter_map(|(name, x)| Some((name.strip_prefix(prefix)?.to_string(), x.clone())))
                .collect()
        };
        for (what, buffer, expected) in [
            ("parameters", &start, on_cpu.params.tensors()),
            ("first moments", &first, moment(FIRST)),
            ("second moments", &second, moment(SECOND)),
            ("average", &average, on_cpu.average()),
        ] {
            let error = relative(&buffer.read()?, &flat.gather(&expected)?);
            rows.push(row(name(step, what), error, ALLOWED));
        }
        let rounded: Vec<u32> = start
            .read()?
            .iter()
            .map(|&x| half::bf16::from_f32(x).to_bits().into())
            .collect();
        let copied: Vec<u32> = bf16_weights
            .read()?
            .iter()
            .map(|x| x.to_bits().into())
            .collect();
        rows.push(row(
            name(step, "bf16 copy, share that differs"),
            share_that_differs(&copied, &rounded),
            0.0,
        ));
    }
    Ok(rows)
}

/// Gradients of magnitude `size`; if `size` is infinite, one of them is too.
fn drawn(flat: &Flat, step: u64, size: f32) -> Result<BTreeMap<String, Tensor>> {
    let tensors = flat.iter().enumerate().map(|(i, (name, _, shape))| {
        let mut values = vec![0f32; shape.elem_count()];
        Stream::new(7, Purpose::Init, step, i as u32).fill_normal(&mut values);
        match size.is_finite() {
            true => values.iter_mut().for_each(|x| *x *= size),
            false => values[i] = size,
        }
        Ok((
            name.to_string(),
            Tensor::from_vec(values, shape.clone(), &Device::Cpu)?,
        ))
    });
    tensors.collect()
}
