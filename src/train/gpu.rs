//! The generator's whole training step on a GPU: examples, forward, backward and update, without
//! synchronising with the host.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::generator::perturbation;
use super::optimizer::ADAM_EPS;
use crate::config::{Config, Timesteps, TrainConfig};
use crate::model::generator::fused::{Activations, Network, Scratch, TrainingDropout};
use crate::ops::condition;
use crate::ops::cuda::{Buffer, Gpu, View};
use crate::ops::optimizer::flat::{
    Adam, CONTROL, CONTROL_SKIPPED, CONTROL_UPDATES, FlatTrained, PARTIALS, adamw,
};
use crate::ops::quantize::Codebook;
use crate::ops::quantize::Schedule;
use crate::ops::quantize::cuda::{ExamplesAt, NoiseAt, Tables, Until};
use crate::world::World;

/// A generator in training: its moments, its moving average and all buffers of a step.
pub struct GpuTrainer {
    network: Network,
    activations: Activations,
    scratch: Scratch,
    gradients: Buffer<f32>,
    first: Buffer<f32>,
    second: Buffer<f32>,
    average: Buffer<f32>,
    control: Buffer<f32>,
    partials: Buffer<f32>,
    /// Tokens, loss and hits at each t [T,3] since the steps' distribution was brought up to date,
    /// where it depends on them.
    losses: Option<Buffer<f32>>,
    tables: Tables,
    order: Buffer<u32>,
    adam: Adam,
    seed: u64,
    side: usize,
}

/// A micro-batch on the host: t in 1..T, labels (some replaced by the empty one), example numbers.
#[derive(Debug, Clone, Copy)]
pub struct MicroBatch<'a> {
    pub t: &'a [u32],
    pub labels: &'a [u32],
    pub indices: &'a [u64],
}

impl GpuTrainer {
    /// Allocates buffers for micro-batches of `batch` images; parameters are zeros until they are
    /// loaded.
    pub fn new(
        gpu: &Arc<Gpu>,
        config: &Config,
        classes: usize,
        batch: usize,
        codebook: &Codebook,
        schedule: &Schedule,
        seed: u64,
    ) -> Result<Self> {
        let network = Network::new(gpu.clone(), config, classes, batch)?;
        let train: &TrainConfig = &config.train_gen;
        let (s, len) = (&network.sizes, network.flat.len);
        let zeros = || Buffer::<f32>::zeros(gpu, len);
        let mut control = vec![0f32; CONTROL];
        control[1] = train.clip as f32;
        control[2] = train.ema_decay as f32;
        let mut activations = Activations::new(gpu, s, train.recompute_blocks)?;
        let probability = config.generator.dropout;
        activations.dropout = (probability != 0.0).then_some(TrainingDropout { probability, seed });
        let mut tables = Tables::new(gpu, codebook, schedule)?;
        if let Some(perturbation) = perturbation(config, codebook)? {
            tables.perturb(gpu, &perturbation)?;
        }
        Ok(Self {
            activations,
            scratch: Scratch::new(gpu, s)?,
            gradients: zeros()?,
            first: zeros()?,
            second: zeros()?,
            average: zeros()?,
            control: Buffer::from_host(gpu, &control)?,
            partials: Buffer::zeros(gpu, PARTIALS)?,
            losses: match config.generator.timesteps {
                Timesteps::Uniform => None,
                Timesteps::Loss => Some(Buffer::zeros(gpu, 3 * s.steps)?),
            },
            tables,
            order: Buffer::zeros(gpu, batch)?,
            adam: Adam {
                beta1: train.betas.0 as f32,
                beta2: train.betas.1 as f32,
                eps: ADAM_EPS as f32,
                weight_decay: train.weight_decay as f32,
            },
            seed,
            side: s.tokens.isqrt(),
            network,
        })
    }

    /// Adds the gradient of a micro-batch of latents [B,N,d], weighted `1/micro_batches`; the first
    /// micro-batch of a step overwrites the previous gradient.
    pub fn compute(
        &mut self,
        latents: View<f32>,
        examples: MicroBatch,
        first: bool,
        micro_batches: usize,
    ) -> Result<()> {
        let (gpu, s) = (self.network.gpu.clone(), self.network.sizes);
        self.activations.conditions.t.write(examples.t)?;
        self.activations.conditions.labels.write(examples.labels)?;
        self.activations.indices.write(examples.indices)?;
        self.order.write(&Until::longest_first(examples.t))?;
        let a = &self.activations;
        let to = ExamplesAt {
            noise: a.noise.view_mut(),
            sum: a.sum.view_mut(),
            codes: a.codes.view_mut(),
        };
        let noise = NoiseAt::Drawn {
            seed: self.seed,
            indices: a.indices.view(),
        };
        let map = [s.batch, self.side, self.side];
        let until = Until {
            t: a.conditions.t.view(),
            order: self.order.view(),
        };
        self.tables.until(&gpu, latents, map, noise, until, to)?;
        self.network.forward(a)?;
        let weight = 1.0 / micro_batches as f32;
        self.network
            .backward(a, &self.scratch, &self.gradients, weight, !first)?;
        match &self.losses {
            None => Ok(()),
            Some(losses) => condition::tally(
                &gpu,
                [s.batch, s.tokens, s.steps],
                a.loss.view(),
                a.hits.view(),
                a.conditions.t.view(),
                a.image_sums.view_mut(),
                losses.view_mut(),
            ),
        }
    }

    /// Loss and tokens at each t since [`GpuTrainer::set_losses`], where the steps' distribution
    /// depends on them; synchronises with the GPU.
    pub fn losses(&self) -> Result<Vec<(f64, f64)>> {
        let Some(losses) = &self.losses else {
            return Ok(Vec::new());
        };
        let row = |row: &[f32]| (f64::from(row[1]), f64::from(row[0]));
        Ok(losses.read()?.chunks_exact(3).map(row).collect())
    }

    /// Restores what [`GpuTrainer::losses`] returned.
    pub fn set_losses(&mut self, losses: &[(f64, f64)]) -> Result<()> {
        let flat = losses
            .iter()
            .flat_map(|&(loss, n)| [n as f32, loss as f32, 0.0]);
        match &mut self.losses {
            Some(to) => to.write(&flat.collect::<Vec<_>>()),
            None => Ok(()),
        }
    }

    /// Adds the gradients, tallies and losses of all ranks to this one's, on the GPUs.
    pub fn sum(&mut self, world: &World) -> crate::error::Result<()> {
        let own = [&self.gradients, &self.activations.tally];
        let own: Vec<_> = own.into_iter().chain(&self.losses).collect();
        world.sum_buffers(&own, &[])
    }

    /// Has another rank keep the tallies and losses of all; this one begins anew.
    pub fn leave_tally(&mut self) -> Result<()> {
        let entries = 3 * self.network.sizes.steps;
        self.set_tally(&vec![0.0; entries])?;
        self.set_losses(&vec![(0.0, 0.0); self.network.sizes.steps])
    }

    /// One update from the step's gradients. If they are not finite, it changes nothing and is
    /// counted as skipped on the GPU.
    pub fn update(&mut self, lr: f64) -> Result<()> {
        self.control.write(&[lr as f32])?;
        let (n, flat) = (&self.network, &self.network.flat);
        let at = FlatTrained {
            gradients: self.gradients.view(),
            parameters: n.parameters.view_mut(),
            first: self.first.view_mut(),
            second: self.second.view_mut(),
            average: self.average.view_mut(),
            bf16_weights: n.bf16_weights.view_mut(),
        };
        let counts = [flat.decayed, flat.len];
        let (partials, control) = (self.partials.view_mut(), self.control.view_mut());
        adamw(&n.gpu, at, &self.adam, counts, partials, control)
    }

    /// Tokens, loss and correct predictions of each t since the last call; synchronises with the
    /// GPU.
    pub fn take_tally(&mut self) -> Result<Vec<Tally>> {
        let tally = self.tally()?;
        self.set_tally(&vec![0f32; tally.len()])?;
        let row = |row: &[f32]| Tally {
            tokens: row[0].into(),
            loss: row[1].into(),
            hits: row[2].into(),
        };
        Ok(tally.chunks_exact(3).map(row).collect())
    }

    /// What [`GpuTrainer::take_tally`] would return, [T·3]; synchronises with the GPU.
    pub fn tally(&self) -> Result<Vec<f32>> {
        self.activations.tally.read()
    }

    /// Restores what [`GpuTrainer::tally`] returned.
    pub fn set_tally(&mut self, tally: &[f32]) -> Result<()> {
        self.activations.tally.write(tally)
    }

    /// The gradient's norm before clipping in the last step, the number of updates, and of
    /// consecutive skipped steps; synchronises with the GPU.
    pub fn state(&self) -> Result<(f64, u64, u64)> {
        let control = self.control.read()?;
        Ok((
            f64::from(control[3]).sqrt(),
            control[CONTROL_UPDATES] as u64,
            control[CONTROL_SKIPPED] as u64,
        ))
    }

    /// Sets the parameters and the average, and zeroes the moments.
    pub fn load(&mut self, parameters: &BTreeMap<String, Tensor>) -> Result<()> {
        let fresh = BTreeMap::new();
        self.restore(parameters, parameters, &fresh, &fresh, [0, 0])
    }

    /// Sets everything that an update changes. Without moments they are zeros. `updates` counts
    /// updates made, `skipped` consecutive skipped steps.
    pub fn restore(
        &mut self,
        parameters: &BTreeMap<String, Tensor>,
        average: &BTreeMap<String, Tensor>,
        first: &BTreeMap<String, Tensor>,
        second: &BTreeMap<String, Tensor>,
        [updates, skipped]: [u64; 2],
    ) -> Result<()> {
        self.network.load(parameters)?;
        let flat = self.network.flat.clone();
        self.average.write(&flat.gather(average)?)?;
        for (to, from) in [(&mut self.first, first), (&mut self.second, second)] {
            match from.is_empty() {
                true => to.write(&vec![0f32; flat.len])?,
                false => to.write(&flat.gather(from)?)?,
            }
        }
        let mut control = self.control.read()?;
        control[CONTROL_UPDATES] = updates as f32;
        control[CONTROL_SKIPPED] = skipped as f32;
        self.control.write(&control)
    }

    /// Parameters, average, first and second moments by name, on the CPU; synchronises with the
    /// GPU.
    pub fn contents(&self) -> Result<[BTreeMap<String, Tensor>; 4]> {
        let flat = &self.network.flat;
        let by_name = |buffer: &Buffer<f32>| flat.scatter(&buffer.read()?);
        Ok([
            by_name(&self.network.parameters)?,
            by_name(&self.average)?,
            by_name(&self.first)?,
            by_name(&self.second)?,
        ])
    }
}

/// Counts for one t.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tally {
    pub tokens: f64,
    pub loss: f64,
    pub hits: f64,
}
