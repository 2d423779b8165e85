//! Sampling on the user's own card against the CPU: the choice of codes from the same logits, the noise's bits, and whole samples of a small model.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use half::bf16;

use super::choose::{Choice, choose};
use super::gpu::GpuSampler;
use super::sampler::{Draws, SampleOptions, Sampler};
use crate::config::Config;
use crate::model::generator::Generator;
use crate::model::gpu::check::{Row, randomize, share_that_differs, small};
use crate::model::tokenizer::Tokenizer;
use crate::ops::cuda::{Buffer, Gpu};
use crate::ops::quantize::cuda::Tables;
use crate::ops::sample::{Advance, Cuts, Streams, advance, choose as choose_on_gpu};
use crate::rng::{Purpose, normal, uniform};
use crate::store::Scope;

const SEED: u64 = (3 << 40) + 17;
const CLASSES: usize = 7;

/// All comparisons.
pub fn sampling(gpu: &Arc<Gpu>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for k in [520, 4096, 9000] {
        rows.extend(choices(gpu, k)?);
    }
    rows.extend(samples(gpu)?);
    Ok(rows)
}

fn row(name: impl Into<String>, error: f64, allowed: f64) -> Row {
    Row {
        name: name.into(),
        error,
        allowed,
    }
}

/// The same logits, the same uniforms: the same codes.
fn choices(gpu: &Gpu, k: usize) -> Result<Vec<Row>> {
    let (b, n, t) = (2, 5, 4);
    let indices = [9u64, 1 << 35];
    let all = normal(1, Purpose::Init, &[0], 0, &[2 * b, n, k], &Device::Cpu)?.squeeze(0)?;
    let halves: Vec<bf16> = all
        .flatten_all()?
        .to_vec1::<f32>()?
        .iter()
        .map(|&x| bf16::from_f32(2.0 * x))
        .collect();
    let values: Vec<f32> = halves.iter().map(|x| x.to_f32()).collect();
    let logits = Tensor::from_vec(values, (2 * b, n, k), &Device::Cpu)?;
    let u = uniform(SEED, Purpose::Gumbel, &indices, t, &[n, k], &Device::Cpu)?;
    let on_card = Buffer::from_host(gpu, &halves)?;
    let (codes, damaged) = (
        Buffer::<u32>::zeros(gpu, b * n)?,
        Buffer::from_host(gpu, &[u32::MAX])?,
    );
    let (seed, numbers) = seeded(gpu, &indices)?;
    let streams = Streams {
        seed: seed.address(),
        indices: numbers.address(),
    };
    let mut rows = Vec::new();
    for (name, gumbel, lambda, top_k, top_p) in [
        ("the largest", false, 0.0, None, None),
        ("guided", true, 1.7, None, None),
        ("unguided", true, 0.0, None, None),
        ("top-k", true, 1.7, Some(30), None),
        ("top-p", true, 0.6, None, Some(0.7)),
        ("top-k and top-p", true, 0.6, Some(200), Some(0.4)),
    ] {
        let choice = Choice {
            lambda,
            tau: 0.9,
            top_k,
            top_p,
        };
        let seen = match lambda {
            0.0 => logits.narrow(0, 0, b)?,
            _ => logits.clone(),
        };
        let expected = choose(&seen, gumbel.then_some(&u), &choice)?;
        let cuts = Cuts {
            lambda,
            tau: 0.9,
            top_k,
            top_p,
            gumbel,
            t: t as usize,
        };
        let (from, to) = (on_card.address(), codes.address());
        choose_on_gpu(gpu, [b, n, k], from, streams, to, damaged.address(), &cuts)?;
        let expected = expected.flatten_all()?.to_vec1::<u32>()?;
        let error = share_that_differs(&codes.read()?, &expected);
        rows.push(row(
            format!("choice among {k} codes, {name}: share that differs"),
            error,
            0.0,
        ));
    }
    Ok(rows)
}

fn seeded(gpu: &Gpu, indices: &[u64]) -> Result<(Buffer<u32>, Buffer<u64>)> {
    Ok((
        Buffer::from_host(gpu, &[SEED as u32, (SEED >> 32) as u32])?,
        Buffer::from_host(gpu, indices)?,
    ))
}

fn options() -> SampleOptions {
    SampleOptions {
        cfg: 1.5,
        cfg_schedule: crate::config::CfgSchedule::Linear,
        temperature: 0.9,
        gumbel: true,
        top_k: None,
        top_p: None,
    }
}

/// A small model whose codes do not touch their neighbours, so that an equal vector is an equal code.
fn samples(gpu: &Arc<Gpu>) -> Result<Vec<Row>> {
    let mut config = small(8, true);
    (config.quantizer.steps, config.quantizer.bias) = (3, false);
    let scope = Scope::init(3, &Device::Cpu);
    let generator = Generator::new(&config, CLASSES, &scope)?;
    let params = scope.finish();
    randomize(&params)?;
    let tokenizer = Tokenizer::new(&config, &Scope::init(4, &Device::Cpu))?;
    let sampler = Sampler::new(&generator, &tokenizer, &config, CLASSES);
    let (labels, indices): (Vec<u32>, Vec<u64>) = (0..12u32)
        .map(|i| (i % CLASSES as u32, u64::from(i) << 30))
        .unzip();
    let draws = Draws::Seeded {
        seed: SEED,
        indices: &indices,
    };
    let expected = sampler
        .latents(&labels, &draws, &options())
        .map_err(candle_core::Error::wrap)?;
    let parameters: BTreeMap<String, Tensor> = params.tensors();
    let on_gpu = GpuSampler::new(
        gpu.clone(),
        &config,
        CLASSES,
        &parameters,
        &tokenizer.quantizer,
    )?;
    let sample = |from: usize, to: usize| {
        on_gpu.latents(&labels[from..to], SEED, &indices[from..to], &options())
    };
    // Ahead of the batch of 12, whose buffers would serve a single image too.
    let mut one_by_one = Vec::new();
    for i in 0..12 {
        one_by_one.extend(flat(&sample(i, i + 1)?[2])?);
    }
    let found = sample(0, 12)?;
    let d = config.tokenizer.embed_dim;
    let mut rows = vec![row(
        "sampling: bits of the noise that differ from the CPU's, share",
        noise(gpu, &config, &indices, &on_gpu)?,
        0.0,
    )];
    for (t, (found, expected)) in found.iter().zip(&expected).enumerate() {
        rows.push(row(
            format!(
                "sampling: sums after step {} that differ from the CPU's in f32, share",
                t + 1
            ),
            differing(&flat(found)?, &flat(expected)?, d),
            [0.05, 0.1, 0.15][t],
        ));
    }
    let whole = flat(&found[2])?;
    rows.push(row(
        "sampling: sums that differ in a second run, share",
        differing(&flat(&sample(0, 12)?[2])?, &whole, d),
        0.0,
    ));
    rows.push(row(
        "sampling: sums that differ between batches of 12 and 1, share",
        differing(&one_by_one, &whole, d),
        0.15,
    ));
    Ok(rows)
}

fn flat(x: &Tensor) -> Result<Vec<f32>> {
    x.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()
}

/// The share of vectors of d that are not alike.
fn differing(a: &[f32], b: &[f32], d: usize) -> f64 {
    let alike = |(a, b): (&[f32], &[f32])| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
    let vectors = a.chunks_exact(d).zip(b.chunks_exact(d));
    vectors.filter(|&pair| !alike(pair)).count() as f64 / (b.len() / d) as f64
}

/// The input rows' noise is the CPU's, rounded to bf16.
fn noise(gpu: &Gpu, config: &Config, indices: &[u64], sampler: &GpuSampler) -> Result<f64> {
    let (b, side, d) = (indices.len(), config.grid(), config.tokenizer.embed_dim);
    let rows = Buffer::<bf16>::zeros(gpu, b * side * side * 2 * d)?;
    let (seed, numbers) = seeded(gpu, indices)?;
    let streams = Streams {
        seed: seed.address(),
        indices: numbers.address(),
    };
    let at = Advance {
        codes: 0,
        before: 0,
        after: 0,
        rows: rows.address(),
        copies: 1,
        t: 2,
    };
    let lookup = Tables::lookup(sampler.tables());
    advance(gpu, [b, side, side, d], lookup, streams, &at)?;
    let expected = flat(&normal(
        SEED,
        Purpose::Noise,
        indices,
        2,
        &[side, side, d],
        &Device::Cpu,
    )?)?;
    let expected: Vec<u32> = expected
        .iter()
        .map(|&x| bf16::from_f32(x).to_bits().into())
        .collect();
    let found = rows.read()?;
    let found: Vec<u32> = found
        .chunks_exact(2 * d)
        .flat_map(|row| &row[..d])
        .map(|x| x.to_bits().into())
        .collect();
    Ok(share_that_differs(&found, &expected))
}
