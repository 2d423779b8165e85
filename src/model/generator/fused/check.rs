//! Checks the fused generator against the CPU's, on the user's own GPU: logits, loss and every
//! gradient of a small random generator, and that two passes are bit-identical.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor, Var};

use super::{Activations, Network, Scratch, TrainingDropout};
use crate::config::Config;
use crate::model::generator::Generator;
use crate::ops::cuda::compare::Row;
use crate::ops::cuda::operands::{bits, relative, share_that_differs, widened};
use crate::ops::cuda::{Buffer, Gpu};
use crate::ops::{Dropout, cross_entropy as cross_entropy_on_cpu};
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

/// Odd and even map sizes, one and several key blocks of attention, enough rows for SwiGLU within
/// its matmuls.
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
    // A small model that ships; then so few multiprocessors that the kernels of many rows serve it,
    // as they serve large batches on a whole GPU.
    let mut config = small(8, true);
    (config.generator.width, config.generator.heads) = (Some(384), Some(6));
    config.generator.adaln_rank = Some(64);
    rows.extend(generator_of(gpu, "C 384, rank 64", &config, 5)?);
    let few = Arc::new(gpu.taken_for(false, 8));
    let name = "C 384, rank 64, 8 multiprocessors";
    rows.extend(generator_of(&few, name, &config, 17)?);
    Ok(rows)
}

/// All comparisons of one generator, a batch of `batch` images.
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
    let prepare = |recomputed| -> Result<Activations> {
        let mut a = Activations::new(gpu, &network.sizes, recomputed)?;
        a.dropout = dropping.map(|dropout| TrainingDropout {
            probability: dropout.probability,
            seed: dropout.seed,
        });
        a.indices.write(&indices)?;
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
    let found = widened(&a.trunk.logits)?;
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
                "generator {kind}: blocks that keep their inner activations, {recomputed} asked to be recomputed, beside the expected"
            ),
            error: kept.abs_diff((depth - recomputed).max(1)) as f64,
            allowed: 0.0,
        });
        network.backward(&a, &scratch, &gradients, 1.0, false)?;
        rows.push(Row {
            name: format!(
                "generator {kind}: gradients of a second pass, {recomputed} blocks recomputed, bits that differ"
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
