//! The GPU's generator against the CPU's, on the user's own card: logits, loss and every gradient of a small random generator, and that two
//! passes give equal bits; its quantizer; and in the files of this folder its kernels one by one.

mod adaln;
mod attention;
mod condition;
mod cross_entropy;
mod kernel;
mod own_products;
mod product;
mod swiglu;

pub use adaln::adaln;
pub use attention::attention;
pub use condition::condition;
pub use cross_entropy::cross_entropy;
pub use product::{product, products};
pub use swiglu::swiglu;

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor, Var};

use super::kernels::DropoutAt;
use super::{Activations, Network, Scratch};
use crate::config::{Config, ScheduleConfig};
use crate::model::dropout::Dropout;
use crate::model::generator::Generator;
use crate::model::schedule::Schedule;
pub use crate::ops::cuda::compare::Row;
use crate::ops::cuda::{Buffer, Gpu};
use crate::ops::quantize::cuda::{ExamplesAt, NoiseAt, QuantizedAt, Tables, Until};
use crate::ops::quantize::recurrent_quantize;
use crate::ops::{
    Codebook, Noise, Perturbation, cross_entropy as cross_entropy_on_cpu, quantize_until,
    quantize_until_perturbed,
};
use crate::rng::{Purpose, Stream, normal};
use crate::store::{Params, Scope};

/// bf16 activations through a few blocks, against f32.
const ALLOWED: f64 = 2e-2;
const CLASSES: usize = 7;

/// Three blocks of two heads, side² tokens.
pub fn small(side: usize, positions: bool) -> Config {
    let mut config = Config::default();
    config.data.image_size = 4 * side;
    config.tokenizer.ch_mult = vec![1, 1, 1];
    config.tokenizer.embed_dim = 16;
    config.quantizer.codebook_size = 520;
    (
        config.generator.depth,
        config.generator.width,
        config.generator.heads,
    ) = (3, Some(128), Some(2));
    config.generator.mix_dim = Some(32);
    config.generator.pos_embed = if positions { 0.1 } else { 0.0 };
    config
}

/// Odd and even map sizes, one and several key blocks of attention, rows enough for SwiGLU within its products.
pub fn generator(gpu: &Arc<Gpu>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (side, batch) in [(4, 3), (7, 2), (8, 5), (16, 4), (17, 2)] {
        let config = small(side, true);
        rows.extend(generator_of(
            gpu,
            &format!("{side}×{side}"),
            &config,
            batch,
        )?);
    }
    for (side, batch, rank) in [(4, 3, 8), (7, 2, 24)] {
        let mut config = small(side, true);
        config.generator.adaln_rank = Some(rank);
        let name = format!("{side}×{side}, rank {rank}");
        rows.extend(generator_of(gpu, &name, &config, batch)?);
    }
    let mut config = small(7, true);
    config.generator.dropout = 0.2;
    rows.extend(generator_of(gpu, "7×7, dropout", &config, 3)?);
    // A small model that ships; then so few multiprocessors that the kernels of many rows serve it, as they serve large batches on a whole card.
    let mut config = small(8, true);
    (config.generator.width, config.generator.heads) = (Some(384), Some(6));
    config.generator.adaln_rank = Some(64);
    rows.extend(generator_of(gpu, "C 384, rank 64", &config, 5)?);
    let few = Arc::new(gpu.taken_for(false, 8));
    let name = "C 384, rank 64, 8 multiprocessors";
    rows.extend(generator_of(&few, name, &config, 17)?);
    Ok(rows)
}

/// All comparisons of one generator, a batch of so many images.
fn generator_of(gpu: &Arc<Gpu>, kind: &str, config: &Config, batch: usize) -> Result<Vec<Row>> {
    let side = config.grid();
    let scope = Scope::init(3, &Device::Cpu);
    let model = Generator::new(config, CLASSES, &scope)?;
    let params = scope.finish();
    randomize(&params)?;
    let indices: Vec<u64> = (0..batch as u64).collect();
    let map = [side, side, config.tokenizer.embed_dim];
    let noise = normal(1, Purpose::Noise, &indices, 1, &map, &Device::Cpu)?;
    let sum = normal(1, Purpose::Noise, &indices, 2, &map, &Device::Cpu)?;
    let mut draws = Stream::new(5, Purpose::Shuffle, 0, 0).draws();
    let labels: Vec<u32> = (0..batch)
        .map(|_| draws.below(CLASSES as u32 + 1))
        .collect();
    let t: Vec<u32> = (0..batch)
        .map(|_| 1 + draws.below(config.quantizer.steps as u32))
        .collect();
    let codes: Vec<u32> = (0..batch * side * side).map(|_| draws.below(520)).collect();

    let on_cpu = |v: &[u32]| Tensor::new(v, &Device::Cpu);
    let condition = model.condition(&on_cpu(&labels)?, &on_cpu(&t)?)?;
    let dropout = Dropout {
        probability: config.generator.dropout,
        seed: (7 << 33) + 1,
        indices: &indices,
    };
    let dropping = (dropout.probability != 0.0).then_some(&dropout);
    let logits = model.forward_dropping(&noise, &sum, &condition, dropping)?;
    let logits = logits.flatten_to(1)?;
    let loss = cross_entropy_on_cpu(&logits, &on_cpu(&codes)?)?.loss;
    let store = loss.mean_all()?.backward()?;

    let mut network = Network::new(gpu.clone(), config, CLASSES, batch)?;
    network.load(&params.tensors())?;
    let numbers = Buffer::from_host(gpu, &indices)?;
    let prepare = |recomputed| -> Result<Activations> {
        let mut a = Activations::new(gpu, &network.sizes, recomputed)?;
        a.trunk.dropout = dropping.map(|dropout| DropoutAt {
            probability: dropout.probability,
            seed: dropout.seed,
            indices: numbers.address(),
        });
        a.noise.write(&noise.flatten_all()?.to_vec1::<f32>()?)?;
        a.sum.write(&sum.flatten_all()?.to_vec1::<f32>()?)?;
        a.conditions.labels.write(&labels)?;
        a.conditions.t.write(&t)?;
        a.codes.write(&codes)?;
        Ok(a)
    };
    let a = prepare(0)?;
    let scratch = Scratch::new(gpu, &network.sizes)?;
    let gradients = Buffer::<f32>::zeros(gpu, network.flat.len)?;
    network.forward(&a)?;
    let found = kernel::widened(&a.trunk.logits)?;
    let row = |name: &str, found: &[f32], reference: &Tensor| -> Result<Row> {
        Ok(Row {
            name: format!("generator {kind}: {name}"),
            error: relative(found, &reference.flatten_all()?.to_vec1::<f32>()?),
            allowed: ALLOWED,
        })
    };
    let mut rows = vec![row("logits", &found, &logits)?];
    network.backward(&a, &scratch, &gradients, 1.0, false)?;
    rows.push(row("loss", &a.loss.read()?, &loss)?);
    let first = gradients.read()?;
    let by_name: BTreeMap<String, Tensor> = network.flat.scatter(&first)?;
    for (name, var) in params.iter() {
        if let Some(reference) = store.get(var.as_tensor()) {
            let found = by_name[name].flatten_all()?.to_vec1::<f32>()?;
            rows.push(row(&format!("gradient of {name}"), &found, reference)?);
        }
    }
    for recomputed in [0, 1, 3] {
        let a = prepare(recomputed)?;
        network.forward(&a)?;
        let depth = network.sizes.depth;
        let kept = (0..depth).filter(|&i| a.trunk.keeps_inner(i)).count();
        rows.push(Row {
            name: format!(
                "generator {kind}: blocks that keep their inner activations, {recomputed} asked to be computed again, beside the expected"
            ),
            error: kept.abs_diff((depth - recomputed).max(1)) as f64,
            allowed: 0.0,
        });
        network.backward(&a, &scratch, &gradients, 1.0, false)?;
        rows.push(Row {
            name: format!(
                "generator {kind}: gradients of a second pass, {recomputed} blocks computed again, bits that differ"
            ),
            error: share_that_differs(&bits(&gradients.read()?), &bits(&first)),
            allowed: 0.0,
        });
    }
    // Two half-weighted passes add up to one.
    network.forward(&a)?;
    network.backward(&a, &scratch, &gradients, 0.5, false)?;
    network.forward(&a)?;
    network.backward(&a, &scratch, &gradients, 0.5, true)?;
    rows.push(Row {
        name: format!("generator {kind}: gradients accumulated"),
        error: relative(&gradients.read()?, &first),
        allowed: ALLOWED,
    });
    Ok(rows)
}

/// The quantizer's kernels at small sizes, Hopper's and the general ones: several maps a block, more tiles of codes than a block holds at once;
/// and those for what no block holds.
pub fn quantize(gpu: &Arc<Gpu>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (kind, card) in kinds(gpu, 2) {
        for d in [16, 32, 64] {
            rows.extend(quantizer_of(
                &card,
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

/// The card with every kind of kernel it runs, taken for one of so many multiprocessors.
pub fn kinds(gpu: &Gpu, multiprocessors: u32) -> Vec<(&'static str, Gpu)> {
    let mut kinds = vec![("general", gpu.taken_for(true, multiprocessors))];
    if gpu.is_hopper() {
        kinds.push(("Hopper's", gpu.taken_for(false, multiprocessors)));
    }
    kinds
}

/// The quantizer at larger sizes.
pub fn quantizer(gpu: &Arc<Gpu>) -> Result<Vec<Row>> {
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

/// The quantizer's kernel against the CPU's on one set of noise: the share of differing codes, and the sums where all codes agree; and noise
/// drawn on the card against the CPU's, bit for bit.
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
        t: t.address(),
        order: order.address(),
    };
    let map = b * h * w;
    let floats = |count: usize| Buffer::<f32>::zeros(gpu, count * d);
    let (drawn, sum, codes) = (floats(map)?, floats(map)?, Buffer::<u32>::zeros(gpu, map)?);
    let to = ExamplesAt {
        noise: drawn.address(),
        sum: sum.address(),
        codes: codes.address(),
    };
    let streams = NoiseAt::Drawn {
        seed: 11,
        indices: indices.address(),
    };
    tables.until(gpu, latents.address(), [b, h, w], streams, until, to)?;
    let (sums, noisy) = (floats((steps + 1) * map)?, floats(steps * map)?);
    let all_codes = Buffer::<u32>::zeros(gpu, steps * map)?;
    let to = QuantizedAt {
        codes: all_codes.address(),
        sums: sums.address(),
        noisy: noisy.address(),
    };
    let given = NoiseAt::Given(given.address());
    tables.all(gpu, latents.address(), [b, h, w], given, to)?;

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
        noise: drawn.address(),
        sum: perturbed_sum.address(),
        codes: perturbed_codes.address(),
    };
    tables.until(gpu, latents.address(), [b, h, w], streams, until, to)?;

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

pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// The share of places where two lists differ.
pub fn share_that_differs(a: &[u32], b: &[u32]) -> f64 {
    a.iter().zip(b).filter(|(a, b)| a != b).count() as f64 / a.len() as f64
}

/// Every parameter a little away from where it starts, so that nothing is multiplied by zero.
pub fn randomize(params: &Params) -> Result<()> {
    for (i, (_, var)) in params.iter().enumerate() {
        let step =
            normal(9, Purpose::Init, &[i as u64], 0, var.dims(), &Device::Cpu)?.squeeze(0)?;
        let var: &Var = var;
        var.set(&(var.as_tensor() + (step * 0.05)?)?)?;
    }
    Ok(())
}

/// ‖found − reference‖ / ‖reference‖
pub fn relative(found: &[f32], reference: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let difference: f64 = found
        .iter()
        .zip(reference)
        .map(|(&a, &b)| square(f64::from(a) - f64::from(b)))
        .sum();
    let norm: f64 = reference.iter().map(|&b| square(f64::from(b))).sum();
    (difference / norm.max(f64::MIN_POSITIVE)).sqrt()
}
