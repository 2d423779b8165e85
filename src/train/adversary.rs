//! The discriminator in tokenizer training: its gradient with respect to the images, for the
//! tokenizer, and its own hinge step afterwards. Both use one forward pass over the reconstructed
//! images, whose weights are the same.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use tracing::info_span;

use super::checkpoint::Tensors;
use super::grads::{self, Gradients, gradients};
use super::optimizer::Optimizer;
use super::step_metrics::StepMetrics;
use crate::config::{LossConfig, TrainConfig};
use crate::error::{Context, Result};
use crate::model::discriminator::{Discriminator, Statistics, WIDTH};
use crate::model::losses::{
    hinge_discriminator, hinge_generator, hinge_generator_gradient, shares,
};
use crate::ops::{Record, Tape};
use crate::store::{Params, Scope};
use crate::world::World;

/// Prefix of the discriminator's tensors in a checkpoint.
const PREFIX: &str = "discriminator";

pub struct Adversary {
    model: Discriminator,
    optimizer: Optimizer,
    /// BatchNorm's running statistics.
    buffers: Params,
    lr: f64,
}

/// The forward pass over reconstructed images.
pub struct Seen {
    images: Var,
    logits: Tensor,
    statistics: Statistics,
    record: Record,
}

/// What the discriminator's update needs from a micro-batch.
pub struct Judged {
    gradients: Gradients,
    statistics: [Statistics; 2],
}

impl Adversary {
    pub fn new(loss: &LossConfig, train: &TrainConfig, seed: u64, device: &Device) -> Result<Self> {
        let compute = train.compute_type.dtype();
        let (weights, buffers) = (Scope::init(seed, device), Scope::init(seed, device));
        let model = {
            let [weights, buffers] = [&weights, &buffers].map(|scope| scope.push(PREFIX));
            Discriminator::new(WIDTH, loss.disc_layers, &weights, &buffers)?.computing(compute)
        };
        let (params, buffers) = (weights.finish(), buffers.finish());
        let config = TrainConfig {
            weight_decay: 0.0,
            ..train.clone()
        };
        Ok(Self {
            model,
            optimizer: Optimizer::new(params, &config, false)?,
            buffers,
            lr: loss.disc_lr,
        })
    }

    /// The parameters.
    pub fn weights(&self) -> impl Iterator<Item = &Var> {
        self.optimizer.params.iter().map(|(_, weight)| weight)
    }

    /// The forward pass over reconstructed images.
    pub fn look(&self, images: &Tensor) -> Result<Seen> {
        let (images, tape) = (Var::from_tensor(images)?, Tape::start());
        let (logits, statistics) = self.model.forward(&images)?;
        Ok(Seen {
            images,
            logits,
            statistics,
            record: tape.stop(),
        })
    }

    /// The adversarial loss of reconstructed images and its gradient with respect to them; weight
    /// gradients are not computed.
    pub fn image_gradient(&self, fake: &Seen) -> Result<(Tensor, Tensor)> {
        let loss = hinge_generator(&fake.logits.detach())?;
        let from = (fake.logits.clone(), hinge_generator_gradient(&fake.logits)?);
        let found = fake.record.backward_from(&[from], [&fake.images])?;
        Ok((loss, grads::at(found, &fake.images)?))
    }

    /// Gradients of the hinge loss on real and reconstructed images, and the share of each that it
    /// classifies correctly.
    pub fn judge(&self, real: &Tensor, fake: Seen, metrics: &mut StepMetrics) -> Result<Judged> {
        let _span = info_span!("discriminator").entered();
        let tape = Tape::start();
        let (real, real_statistics) = self.model.forward(real)?;
        // The graph is cut at the reconstructed images' logits.
        let at = Var::from_tensor(&fake.logits.detach())?;
        let loss = hinge_discriminator(&real, &at)?;
        let [real_share, fake_share] = shares(&real, &at)?;
        metrics.add_scalar("disc_loss", &loss);
        metrics.add_scalar("disc_real", &real_share);
        metrics.add_scalar("disc_fake", &fake_share);
        drop(real);
        let params = &self.optimizer.params;
        let mut store = tape.backward(loss)?;
        let at_fake = store
            .remove(&at)
            .context("no gradient reached the logits")?;
        let mut sum = gradients(store, params.iter())?;
        let variables = params.iter().map(|(_, var)| var);
        let store = (fake.record).backward_from(&[(fake.logits, at_fake)], variables)?;
        grads::accumulate(&mut sum, gradients(store, params.iter())?)?;
        let norm = crate::ops::global_norm(sum.values())?;
        metrics.add_scalar("disc_grad_norm", &norm);
        Ok(Judged {
            gradients: sum,
            statistics: [real_statistics, fake.statistics],
        })
    }

    /// One update from all micro-batches of a step, of which `judged` has this process's, at
    /// `share` of the learning rate: where the schedule stands [ours]. A discriminator that keeps
    /// its rate while the tokenizer's falls soon tells all images apart, and its gradient no
    /// longer helps.
    pub fn update(&mut self, world: &World, judged: Vec<Judged>, share: f64) -> Result<()> {
        if judged.is_empty() {
            return Ok(());
        }
        let scale = 1.0 / (judged.len() * world.size()) as f64;
        let mut sum = grads::Sum::new(world);
        for one in judged {
            sum.add(one.gradients)?;
            for statistics in of_all(world, one.statistics)? {
                self.model.keep(&statistics)?;
            }
        }
        self.optimizer
            .update(&sum.finish()?, self.lr * share, scale)
    }

    pub fn updates(&self) -> u64 {
        self.optimizer.updates
    }

    /// Weights, running statistics and moments.
    pub fn state(&self) -> Tensors {
        let mut tensors = self.optimizer.state();
        tensors.extend(self.optimizer.params.tensors());
        tensors.extend(self.buffers.tensors());
        tensors
    }

    /// Takes the discriminator's tensors out of `tensors`.
    pub fn restore(&mut self, tensors: &mut Tensors, updates: u64) -> Result<()> {
        let mut take = |params: &Params| -> BTreeMap<String, Tensor> {
            let names = params.iter().map(|(name, _)| name.to_string());
            names
                .filter_map(|name| Some((name.clone(), tensors.remove(&name)?)))
                .collect()
        };
        let weights = take(&self.optimizer.params);
        self.buffers.assign(&take(&self.buffers))?;
        let none = BTreeMap::new();
        self.optimizer.restore(&weights, &none, tensors, updates)
    }
}

/// As [`of_all`], from GPU to GPU.
#[cfg(feature = "cuda")]
fn of_all_gpus(world: &World, own: &[Statistics; 2]) -> Result<Vec<Statistics>> {
    let tensors = own.iter().flatten().flat_map(|(mean, var)| [mean, var]);
    let flat = tensors.map(Tensor::flatten_all);
    let flat = flat.collect::<candle_core::Result<Vec<_>>>()?;
    let gathered = world.gather_tensor(&Tensor::cat(&flat, 0)?)?; // [W,n]
    let mut all = Vec::new();
    for rank in 0..world.size() {
        let (values, mut at) = (gathered.get(rank)?, 0);
        let mut like = |tensor: &Tensor| -> Result<Tensor> {
            let part = values.narrow(0, at, tensor.elem_count())?;
            at += tensor.elem_count();
            Ok(part.reshape(tensor.shape())?.contiguous()?)
        };
        for own in own {
            let both = own
                .iter()
                .map(|(mean, variance)| Ok((like(mean)?, like(variance)?)));
            all.push(both.collect::<Result<Statistics>>()?);
        }
    }
    Ok(all)
}

/// The statistics of a micro-batch of every process, in their order.
fn of_all(world: &World, own: [Statistics; 2]) -> Result<Vec<Statistics>> {
    if world.size() == 1 {
        return Ok(own.into());
    }
    #[cfg(feature = "cuda")]
    if world.has_gpus() {
        return of_all_gpus(world, &own);
    }
    let mut bytes = Vec::new();
    for tensor in own
        .iter()
        .flatten()
        .flat_map(|(mean, variance)| [mean, variance])
    {
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        bytes.extend(values.into_iter().flat_map(f32::to_le_bytes));
    }
    let mut all = Vec::new();
    for theirs in world.gather(&bytes)? {
        let (values, _) = theirs.as_chunks::<4>();
        let mut values = values.iter().map(|x| f32::from_le_bytes(*x));
        let mut like = |tensor: &Tensor| -> Result<Tensor> {
            let values: Vec<f32> = values.by_ref().take(tensor.elem_count()).collect();
            Ok(Tensor::from_vec(values, tensor.shape(), tensor.device())?)
        };
        for own in &own {
            let both = own
                .iter()
                .map(|(mean, variance)| Ok((like(mean)?, like(variance)?)));
            all.push(both.collect::<Result<Statistics>>()?);
        }
    }
    Ok(all)
}
