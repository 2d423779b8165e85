//! Compares sampling on the user's GPU with the CPU: the choice of codes from the same logits, the
//! bits of the noise, and whole samples of a small model.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use half::bf16;

use super::choose::{Choice, choose};
use super::gpu::GpuSampler;
use super::options::SampleOptions;
use super::sampler::{Draws, Sampler};
use crate::config::{Config, ScheduleConfig};
use crate::model::generator::Generator;
use crate::model::generator::fused::check::{randomize, small};
use crate::model::tokenizer::Tokenizer;
use crate::ops::Codebook;
use crate::ops::cuda::compare::Row;
use crate::ops::cuda::operands::{bits, relative, row, share_that_differs};
use crate::ops::cuda::{Buffer, Gpu};
use crate::ops::quantize::Schedule;
use crate::ops::quantize::cuda::Tables;
use crate::ops::sample::{Advance, Cuts, Streams, advance, choose as choose_on_gpu};
use crate::rng::{Purpose, normal, uniform};
use crate::store::Scope;

const SEED: u64 = (3 << 40) + 17;
const CLASSES: usize = 7;

/// The kernels alone: every range of K, and the update of the sums.
pub fn sample(gpu: &Arc<Gpu>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for k in [520, 4096, 4104, 9000] {
        for ties in [false, true] {
            rows.extend(choices(gpu, k, ties)?);
        }
    }
    for bias in [false, true] {
        rows.extend(advanced(gpu, bias)?);
    }
    Ok(rows)
}

/// Same logits and uniforms, so the same codes. With `ties` the logits take few values, so that
/// top-k and top-p cut between equal ones.
fn choices(gpu: &Gpu, k: usize, ties: bool) -> Result<Vec<Row>> {
    let (b, n, t) = (2, 5, 4);
    let indices = [9u64, 1 << 35];
    let all = normal(1, Purpose::Init, &[0], 0, &[2 * b, n, k], &Device::Cpu)?.squeeze(0)?;
    let halves: Vec<bf16> = all
        .flatten_all()?
        .to_vec1::<f32>()?
        .iter()
        .map(|&x| bf16::from_f32(if ties { x.round() } else { 2.0 * x }))
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
        seed: seed.view(),
        indices: numbers.view(),
    };
    let mut rows = Vec::new();
    for (name, gumbel, lambda, top_k, top_p) in [
        ("the largest", false, 0.0, None, None),
        ("guided", true, 1.7, None, None),
        ("unguided", true, 0.0, None, None),
        ("top-k", true, 1.7, Some(30), None),
        ("top-p", true, 0.6, None, Some(0.7)),
        ("top-k and top-p", true, 0.6, Some(200), Some(0.4)),
        ("top-p of nearly all", true, 0.0, None, Some(0.999)),
        (
            "top-k and top-p, the largest",
            false,
            0.0,
            Some(3),
            Some(0.01),
        ),
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
        let (to, damaged) = (codes.view_mut(), damaged.view_mut());
        choose_on_gpu(gpu, [b, n, k], on_card.view(), streams, to, damaged, &cuts)?;
        let expected = expected.flatten_all()?.to_vec1::<u32>()?;
        let error = share_that_differs(&codes.read()?, &expected);
        let kind = if ties { "with ties, " } else { "" };
        rows.push(row(
            format!("choice among {k} codes, {kind}{name}: share that differs"),
            error,
            0.0,
        ));
    }
    Ok(rows)
}

/// The sums with a step's codes added, and the next step's input rows for both halves, at an odd
/// size.
fn advanced(gpu: &Gpu, bias: bool) -> Result<Vec<Row>> {
    let (b, h, w, d, k, t) = (2, 3, 5, 16, 40, 3);
    let random = |seed, shape: &[usize]| {
        normal(seed, Purpose::Init, &[0], 0, shape, &Device::Cpu)?.squeeze(0)
    };
    let convolution = (random(2, &[d, d, 3, 3])?, random(3, &[d])?);
    let codebook = Codebook {
        embedding: random(1, &[k, d])?,
        bias: bias.then_some(convolution),
    };
    let schedule = Schedule::new(&ScheduleConfig::default(), 4);
    let tables = Tables::new(gpu, &codebook, &schedule)?;
    let before = random(4, &[b, h, w, d])?;
    let codes: Vec<u32> = (0..b * h * w).map(|i| (i * 7 % k) as u32).collect();
    let looked_up = codebook.lookup(&Tensor::from_slice(&codes, (b, h, w), &Device::Cpu)?)?;
    let expected = flat(&(&before + looked_up)?)?;

    let indices = [9u64, 1 << 35];
    let (seed, numbers) = seeded(gpu, &indices)?;
    let streams = Streams {
        seed: seed.view(),
        indices: numbers.view(),
    };
    let codes = Buffer::from_host(gpu, &codes)?;
    let before = Buffer::from_host(gpu, &flat(&before)?)?;
    let after = Buffer::from_host(gpu, &vec![f32::NAN; expected.len()])?;
    let joined = Buffer::from_host(gpu, &vec![bf16::NAN; 4 * expected.len()])?;
    let at = Advance {
        codes: Some(codes.view()),
        before: Some(before.view()),
        after: Some(after.view_mut()),
        rows: Some(joined.view_mut()),
        copies: 2,
        t,
    };
    advance(gpu, [b, h, w, d], tables.lookup()?, streams, at)?;
    let noise = normal(
        SEED,
        Purpose::Noise,
        &indices,
        t as u32,
        &[h, w, d],
        &Device::Cpu,
    )?;
    let half = |x: &f32| u32::from(bf16::from_f32(*x).to_bits());
    let (noise, sum) = (flat(&noise)?, after.read()?);
    let once: Vec<u32> = noise
        .chunks_exact(d)
        .zip(sum.chunks_exact(d))
        .flat_map(|(noise, sum)| noise.iter().chain(sum).map(half))
        .collect();
    let found: Vec<u32> = joined.read()?.iter().map(|x| x.to_bits().into()).collect();
    let name = |what: &str| {
        let taps = if bias { 9 } else { 1 };
        format!("sums advanced, {taps} taps: {what}")
    };
    Ok(vec![
        row(name("z'"), relative(&sum, &expected), 1e-5),
        row(
            name("input rows, share that differs"),
            share_that_differs(&found, &once.repeat(2)),
            0.0,
        ),
    ])
}

fn seeded(gpu: &Gpu, indices: &[u64]) -> Result<(Buffer<u32>, Buffer<u64>)> {
    Ok((
        Buffer::from_host(gpu, &[SEED as u32, (SEED >> 32) as u32])?,
        Buffer::from_host(gpu, indices)?,
    ))
}

/// Enough runs to detect a kernel that does not wait for the previous one.
const EARLY_RUNS: usize = 100;

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

/// A small model whose codes do not affect their neighbours, so that equal vectors mean equal
/// codes; then with modulations of low rank.
pub fn sampling(gpu: &Arc<Gpu>) -> Result<Vec<Row>> {
    let mut rows = sampling_of(gpu, "sampling", None)?;
    rows.extend(sampling_of(gpu, "sampling, rank 8", Some(8))?);
    Ok(rows)
}

fn sampling_of(gpu: &Arc<Gpu>, kind: &str, rank: Option<usize>) -> Result<Vec<Row>> {
    let mut config = small(8, true);
    config.generator.adaln_rank = rank;
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
    let quantizer = &tokenizer.quantizer;
    let sampler_on = |gpu| GpuSampler::new(gpu, &config, CLASSES, &parameters, quantizer);
    let sample_on = |sampler: &GpuSampler, from: usize, to: usize| {
        sampler.latents(&labels[from..to], SEED, &indices[from..to], &options())
    };
    let on_gpu = sampler_on(gpu.clone())?;
    let sample = |from, to| sample_on(&on_gpu, from, to);
    // Before the batch of 12, whose buffers could also hold a single image.
    let mut one_by_one = Vec::new();
    for i in 0..12 {
        one_by_one.extend(flat(&sample(i, i + 1)?[2])?);
    }
    let found = sample(0, 12)?;
    let d = config.tokenizer.embed_dim;
    let mut rows = vec![row(
        format!("{kind}: bits of the noise that differ from the CPU's, share"),
        noise(gpu, &config, &indices, &on_gpu)?,
        0.0,
    )];
    for (t, (found, expected)) in found.iter().zip(&expected).enumerate() {
        rows.push(row(
            format!(
                "{kind}: sums after step {} that differ from the CPU's in f32, share",
                t + 1
            ),
            differing(&flat(found)?, &flat(expected)?, d),
            [0.05, 0.1, 0.15][t],
        ));
    }
    let whole = flat(&found[2])?;
    rows.push(row(
        format!("{kind}: sums that differ in a second run, share"),
        differing(&flat(&sample(0, 12)?[2])?, &whole, d),
        0.0,
    ));
    rows.push(row(
        format!("{kind}: sums that differ between batches of 12 and 1, share"),
        differing(&one_by_one, &whole, d),
        0.15,
    ));
    // If a batch is large for the GPU, branches are added to the residual stream within their
    // GEMMs.
    let on_few = sampler_on(Arc::new(gpu.taken_for(false, 4)))?;
    rows.push(row(
        format!(
            "{kind}: sums of a batch large for the GPU that differ from the CPU's in f32, share"
        ),
        differing(
            &flat(&sample_on(&on_few, 0, 12)?[2])?,
            &flat(&expected[2])?,
            d,
        ),
        0.15,
    ));
    let in_order = sampler_on(Arc::new(gpu.in_order()))?;
    for (from, to) in [(0, 1), (0, 12)] {
        let expected = bits(&flat(&sample_on(&in_order, from, to)?[2])?);
        let mut most = 0f64;
        for _ in 0..EARLY_RUNS {
            let found = bits(&flat(&sample(from, to)?[2])?);
            most = most.max(share_that_differs(&found, &expected));
        }
        rows.push(row(
            format!("{kind}: sums of {to} images by kernels that start before the previous one has ended, bits that differ"),
            most,
            0.0,
        ));
    }
    Ok(rows)
}

fn flat(x: &Tensor) -> Result<Vec<f32>> {
    x.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()
}

/// The share of vectors of length d that differ.
fn differing(a: &[f32], b: &[f32], d: usize) -> f64 {
    let alike = |(a, b): (&[f32], &[f32])| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
    let vectors = a.chunks_exact(d).zip(b.chunks_exact(d));
    vectors.filter(|&pair| !alike(pair)).count() as f64 / (b.len() / d) as f64
}

/// The noise in the input rows is the CPU's, rounded to bf16.
fn noise(gpu: &Gpu, config: &Config, indices: &[u64], sampler: &GpuSampler) -> Result<f64> {
    let (b, side, d) = (indices.len(), config.grid(), config.tokenizer.embed_dim);
    let rows = Buffer::<bf16>::zeros(gpu, b * side * side * 2 * d)?;
    let (seed, numbers) = seeded(gpu, indices)?;
    let streams = Streams {
        seed: seed.view(),
        indices: numbers.view(),
    };
    let at = Advance {
        codes: None,
        before: None,
        after: None,
        rows: Some(rows.view_mut()),
        copies: 1,
        t: 2,
    };
    let lookup = sampler.tables().lookup()?;
    advance(gpu, [b, side, side, d], lookup, streams, at)?;
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
