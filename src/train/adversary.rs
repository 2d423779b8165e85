//! The discriminator in tokenizer training: its gradient with respect to the images, for the
//! tokenizer, and its own hinge step afterwards.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use tracing::info_span;

use super::checkpoint::Tensors;
use super::grads::{self, Gradients, gradients};
use super::optimizer::Optimizer;
use super::reduce;
use super::step_metrics::StepMetrics;
use crate::config::{LossConfig, TrainConfig};
use crate::error::Result;
use crate::model::discriminator::{Discriminator, Statistics, WIDTH};
use crate::model::losses::{hinge_discriminator, hinge_generator};
use crate::ops::Tape;
use crate::store::{Params, Scope};

/// Prefix of the discriminator's tensors in a checkpoint.
const PREFIX: &str = "discriminator";

pub struct Adversary {
    model: Discriminator,
    /// The same weights without gradients, used for the tokenizer's adversarial loss.
    frozen: Discriminator,
    optimizer: Optimizer,
    /// BatchNorm's running statistics.
    buffers: Params,
    lr: f64,
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
        let build = |weights: &Scope, buffers: &Scope| {
            let [weights, buffers] = [weights, buffers].map(|scope| scope.push(PREFIX));
            let model = Discriminator::new(WIDTH, loss.disc_layers, &weights, &buffers)?;
            Ok::<_, crate::error::Error>(model.computing(compute))
        };
        let model = build(&weights, &buffers)?;
        let (params, buffers) = (weights.finish(), buffers.finish());
        let frozen = build(
            &Scope::load(&params.tensors(), device),
            &Scope::load(&buffers.tensors(), device),
        )?;
        let config = TrainConfig {
            weight_decay: 0.0,
            ..train.clone()
        };
        Ok(Self {
            model,
            frozen,
            optimizer: Optimizer::new(params, &config, false)?,
            buffers,
            lr: loss.disc_lr,
        })
    }

    /// The parameters, which `frozen` shares.
    pub fn weights(&self) -> impl Iterator<Item = &Var> {
        self.optimizer.params.iter().map(|(_, weight)| weight)
    }

    /// The adversarial loss of `images` and its gradient with respect to them; weight gradients are
    /// not computed.
    pub fn image_gradient(&self, images: &Tensor) -> Result<(Tensor, Tensor)> {
        let (at, tape) = (Var::from_tensor(images)?, Tape::start());
        let loss = hinge_generator(&self.frozen.forward(&at)?.0)?;
        let value = loss.detach();
        Ok((value, grads::at(tape.backward(loss)?, &at)?))
    }

    /// Gradients of the hinge loss on real and reconstructed images, and the share of each that it
    /// classifies correctly.
    pub fn judge(&self, real: &Tensor, fake: &Tensor, metrics: &mut StepMetrics) -> Result<Judged> {
        let _span = info_span!("discriminator").entered();
        let tape = Tape::start();
        let (real, real_statistics) = self.model.forward(real)?;
        let (fake, fake_statistics) = self.model.forward(fake)?;
        let loss = hinge_discriminator(&real, &fake)?;
        let share = |right: Tensor| right.to_dtype(candle_core::DType::F32)?.mean_all();
        metrics.add_scalar("disc_loss", &loss);
        metrics.add_scalar("disc_real", &share(real.gt(0f32)?)?);
        metrics.add_scalar("disc_fake", &share(fake.lt(0f32)?)?);
        let gradients = gradients(tape.backward(loss)?, &self.optimizer.params)?;
        let norm = crate::ops::global_norm(gradients.values())?;
        metrics.add_scalar("disc_grad_norm", &norm);
        Ok(Judged {
            gradients,
            statistics: [real_statistics, fake_statistics],
        })
    }

    /// One update from all micro-batches of a step.
    pub fn update(&mut self, judged: Vec<Judged>) -> Result<()> {
        let (scale, mut sum) = (1.0 / judged.len().max(1) as f64, Gradients::new());
        if judged.is_empty() {
            return Ok(());
        }
        for one in judged {
            grads::accumulate(&mut sum, one.gradients)?;
            for statistics in one.statistics {
                self.model.keep(&self.reduced(statistics)?)?;
            }
        }
        let sum = reduce::gradients(sum)?;
        self.optimizer.update(&sum, self.lr, scale)
    }

    fn reduced(&self, statistics: Statistics) -> Result<Statistics> {
        statistics
            .into_iter()
            .map(|(mean, var)| Ok((reduce::mean(mean)?, reduce::mean(var)?)))
            .collect()
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
