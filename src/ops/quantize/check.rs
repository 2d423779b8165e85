//! Checks the quantizer's kernels against the CPU's Algorithm 1: small sizes, sm_90's and the
//! general ones, several maps per block, more tiles of codes than a block holds at once, sizes that
//! no block holds; then larger sizes.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::cuda::{ExamplesAt, NoiseAt, QuantizedAt, Tables, Until};
use super::{
    Codebook, Noise, Perturbation, Schedule, quantize_until, quantize_until_perturbed,
    recurrent_quantize,
};
use crate::config::ScheduleConfig;
use crate::ops::cuda::compare::Row;
use crate::ops::cuda::operands::{bits, kinds, relative, share_that_differs};
use crate::ops::cuda::{Buffer, Gpu};
use crate::rng::{Purpose, normal};

/// The kernels at small sizes.
pub fn check(gpu: &Arc<Gpu>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (kind, gpu) in kinds(gpu, 2) {
        for d in [16, 32, 64] {
            rows.extend(quantizer_of(
                &gpu,
                &format!(", {kind}"),
                [3, 3, 5, d, 1100, 2],
            )?);
        }
    }
    for sizes in [[3, 3, 5, 12, 300, 3], [2, 13, 21, 32, 70, 2]] {
        rows.extend(quantizer_of(gpu, ", by steps", sizes)?);
    }
    Ok(rows)
}

/// The same at larger sizes.
pub fn check_larger(gpu: &Arc<Gpu>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for sizes in [
        [3, 16, 16, 32, 4096, 10],
        [5, 8, 8, 32, 700, 10],
        [7, 7, 7, 16, 500, 6],
        [2, 5, 9, 64, 1000, 3],
        [2, 20, 20, 32, 600, 4],
        [3, 5, 6, 72, 300, 5],
    ] {
        rows.extend(quantizer_of(gpu, "", sizes)?);
    }
    Ok(rows)
}

/// The share of codes that differ from the CPU's with the same noise, and the sums; noise that is
/// drawn on the GPU is bit-identical to the CPU's.
fn quantizer_of(gpu: &Gpu, kind: &str, [b, h, w, d, k, steps]: [usize; 6]) -> Result<Vec<Row>> {
    let random = |seed, shape: &[usize], std: f64| {
        normal(seed, Purpose::Init, &[0], 0, shape, &Device::Cpu)?.squeeze(0)? * std
    };
    let codebook = Codebook {
        embedding: random(1, &[k, d], 0.5)?,
        bias: Some((random(2, &[d, d, 3, 3], 0.02)?, random(3, &[d], 0.02)?)),
    };
    let schedule = Schedule::new(&ScheduleConfig::default(), steps);
    let v = random(4, &[b, h, w, d], 1.0)?;
    let given = random(5, &[steps, b, h, w, d], 1.0)?;
    let indices: Vec<u64> = (0..b as u64).map(|i| (i << 33) + 5).collect();
    let t: Vec<u32> = (0..b).map(|i| 1 + ((i + 1) % steps) as u32).collect();
    let noise = Noise::Drawn {
        seed: 11,
        indices: &indices,
    };
    let expected = quantize_until(&v, &codebook, &noise, &schedule, &t)?;
    let expected_all = recurrent_quantize(&v, &codebook, &Noise::Given(&given), &schedule)?;

    let all = |x: &Tensor| x.flatten_all()?.to_vec1::<f32>();
    let tables = Tables::new(gpu, &codebook, &schedule)?;
    let latents = Buffer::from_host(gpu, &all(&v)?)?;
    let given = Buffer::from_host(gpu, &all(&given)?)?;
    let indices = Buffer::from_host(gpu, &indices)?;
    let order = Buffer::from_host(gpu, &Until::longest_first(&t))?;
    let on_host = t;
    let t = Buffer::from_host(gpu, &on_host)?;
    let until = Until {
        t: t.view(),
        order: order.view(),
    };
    let map = b * h * w;
    let floats = |count: usize| Buffer::<f32>::zeros(gpu, count * d);
    let (drawn, sum, codes) = (floats(map)?, floats(map)?, Buffer::<u32>::zeros(gpu, map)?);
    let to = ExamplesAt {
        noise: drawn.view_mut(),
        sum: sum.view_mut(),
        codes: codes.view_mut(),
    };
    let streams = NoiseAt::Drawn {
        seed: 11,
        indices: indices.view(),
    };
    tables.until(gpu, latents.view(), [b, h, w], streams, until, to)?;
    let (sums, noisy) = (floats((steps + 1) * map)?, floats(steps * map)?);
    let all_codes = Buffer::<u32>::zeros(gpu, steps * map)?;
    let to = QuantizedAt {
        codes: Some(all_codes.view_mut()),
        sums: Some(sums.view_mut()),
        noisy: Some(noisy.view_mut()),
    };
    let given = NoiseAt::Given(given.view());
    tables.all(gpu, latents.view(), [b, h, w], given, to)?;

    // Perturbed: the same noise and until the same steps.
    let perturbation = Perturbation::new(&codebook.embedding, 0.3)?;
    let expected_perturbed = quantize_until_perturbed(
        &v,
        &codebook,
        &noise,
        &schedule,
        &on_host,
        Some(&perturbation),
    )?;
    let mut tables = tables;
    tables.perturb(gpu, &perturbation)?;
    let (perturbed_sum, perturbed_codes) = (floats(map)?, Buffer::<u32>::zeros(gpu, map)?);
    let to = ExamplesAt {
        noise: drawn.view_mut(),
        sum: perturbed_sum.view_mut(),
        codes: perturbed_codes.view_mut(),
    };
    tables.until(gpu, latents.view(), [b, h, w], streams, until, to)?;

    let mut rows = Vec::new();
    let mut row = |what: &str, error, allowed| {
        rows.push(Row {
            name: format!(
                "quantizer{kind}, {b} maps {h}×{w} of {d}, {k} codes, {steps} steps: {what}"
            ),
            error,
            allowed,
        })
    };
    row(
        "noise, share of differing bits",
        share_that_differs(&bits(&drawn.read()?), &bits(&all(&expected.noise)?)),
        0.0,
    );
    // A code may differ at a tie, and what follows it then differs too.
    let differing = |found: &Buffer<u32>, expected: &Tensor| {
        let expected = expected.flatten_all()?.to_vec1::<u32>()?;
        Ok::<_, candle_core::Error>(share_that_differs(&found.read()?, &expected))
    };
    row(
        "codes, share that differ",
        differing(&codes, &expected.codes)?,
        2e-3,
    );
    row("sums", relative(&sum.read()?, &all(&expected.sum)?), 2e-3);
    row(
        "codes after perturbed ones, share that differ",
        differing(&perturbed_codes, &expected_perturbed.codes)?,
        2e-3,
    );
    let error = relative(&perturbed_sum.read()?, &all(&expected_perturbed.sum)?);
    row("sums of perturbed codes", error, 2e-3);
    let error = differing(&all_codes, &expected_all.codes)?;
    row("codes of all steps, share that differ", error, 2e-3);
    let error = relative(&sums.read()?, &all(&expected_all.sums)?);
    row("sums of all steps", error, 2e-3);
    let error = relative(&noisy.read()?, &all(&expected_all.noisy)?);
    row("noisy latents of all steps", error, 2e-3);
    Ok(rows)
}
