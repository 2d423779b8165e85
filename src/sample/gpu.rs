//! Sampling on a GPU with custom bf16 kernels: Algorithm 2 as one captured CUDA graph over
//! preallocated buffers.
//!
//! All T steps of a batch are one launch from the host. Conditions and modulations of every t are
//! computed once, before the first step. A step with λ_t = 0 skips the unconditional half. Noise
//! and uniforms are bit-identical to the CPU's, and drawn where they are used.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use candle_core::{Result, Tensor, bail};

use super::choose::Choice;
use super::options::SampleOptions;
use crate::config::Config;
use crate::model::Quantizer;
use crate::model::generator::fused::{Conditions, Network, Sets, Sizes, Trunk};
use crate::ops::cuda::{Buffer, Gpu, Graph, View, ViewMut};
use crate::ops::quantize::cuda::Tables;
use crate::ops::sample::{Advance, Cuts, Streams, advance, choose};

/// A generator's weights on the GPU, and the graph for the last batch size and options.
pub struct GpuSampler {
    network: Network,
    tables: Tables,
    /// h = w
    side: usize,
    plan: Mutex<Option<CapturedBatch>>,
}

/// The buffers of a batch and the captured work.
struct CapturedBatch {
    batch: usize,
    options: SampleOptions,
    /// Images per pass of the transformer: the batch, or twice the batch with guidance.
    rows: usize,
    /// [T, rows]
    conditions: Conditions,
    trunk: Trunk,
    seed: Buffer<u32>,
    indices: Buffer<u64>,
    codes: Buffer<u32>,
    /// z'_1 .. z'_T f32 [T,B,N,d]
    sums: Buffer<f32>,
    damaged: Buffer<u32>,
    graph: Option<Graph>,
}

impl GpuSampler {
    /// Errors: sizes that the kernels do not support, by name; a missing parameter.
    pub fn new(
        gpu: Arc<Gpu>,
        config: &Config,
        classes: usize,
        parameters: &BTreeMap<String, Tensor>,
        quantizer: &Quantizer,
    ) -> Result<Self> {
        let tables = Tables::new(&gpu, &quantizer.codebook, &quantizer.schedule)?;
        let mut network = Network::new(gpu, config, classes, 1)?;
        network.load(parameters)?;
        Ok(Self {
            tables,
            side: network.sizes.tokens.isqrt(),
            network,
            plan: Mutex::default(),
        })
    }

    /// Errors: sizes that the kernels do not support, by name.
    pub fn serves(config: &Config, classes: usize) -> Result<()> {
        Sizes::of(config, classes, 1).map(|_| ())
    }

    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    pub fn gpu(&self) -> &Gpu {
        &self.network.gpu
    }

    /// z'_1 .. z'_T, each [B,h,w,d], for labels [B] and the samples' numbers [B].
    ///
    /// Errors: logits that are not finite.
    pub fn latents(
        &self,
        labels: &[u32],
        seed: u64,
        indices: &[u64],
        options: &SampleOptions,
    ) -> Result<Vec<Tensor>> {
        self.draw(labels, seed, indices, options)?;
        let steps = 1..=self.network.sizes.steps;
        steps.map(|t| self.sum(t, labels.len())).collect()
    }

    /// z'_T alone, as [`GpuSampler::latents`].
    pub fn latent(
        &self,
        labels: &[u32],
        seed: u64,
        indices: &[u64],
        options: &SampleOptions,
    ) -> Result<Tensor> {
        self.draw(labels, seed, indices, options)?;
        self.sum(self.network.sizes.steps, labels.len())
    }

    /// Runs a batch's steps and waits for them.
    fn draw(
        &self,
        labels: &[u32],
        seed: u64,
        indices: &[u64],
        options: &SampleOptions,
    ) -> Result<()> {
        if labels.is_empty() || labels.len() != indices.len() {
            bail!(
                "sampling: {} labels and {} numbers of samples, expected at least one of each and as many",
                labels.len(),
                indices.len()
            );
        }
        let (mut plan, s) = (self.lock(), &self.network.sizes);
        let plan = self.ready(&mut plan, labels.len(), options)?;
        self.give(plan, labels, seed, indices)?;
        plan.launch()?;
        let damaged = plan.damaged.read()?[0] as usize;
        if damaged < labels.len() * s.tokens {
            bail!(
                "image {}, position {}: no code has a finite logit (are the weights damaged?)",
                damaged / s.tokens,
                damaged % s.tokens
            );
        }
        Ok(())
    }

    /// z'_t of the last batch's first `batch` images.
    fn sum(&self, t: usize, batch: usize) -> Result<Tensor> {
        let s = &self.network.sizes;
        match &*self.lock() {
            Some(plan) => {
                let from = (t - 1) * plan.batch * s.tokens * s.latent;
                let shape = (batch, self.side, self.side, s.latent);
                plan.sums.tensor(self.gpu(), from, shape)
            }
            None => bail!("sampling: no batch was drawn"),
        }
    }

    /// Launches the last batch again with the same inputs, for timing.
    pub fn repeat(&self) -> Result<()> {
        match &*self.lock() {
            Some(plan) => plan.launch(),
            None => Ok(()),
        }
    }

    /// [`GpuSampler::repeat`], and a copy of z'_T of `batch` images; does not wait.
    pub fn repeat_latent(&self, batch: usize) -> Result<Tensor> {
        self.repeat()?;
        self.sum(self.network.sizes.steps, batch)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<CapturedBatch>> {
        self.plan
            .lock()
            .expect("no thread panics while it holds this lock")
    }

    /// A captured batch for these options and at least `batch` images; the last one is reused if it
    /// fits.
    fn ready<'a>(
        &self,
        plan: &'a mut Option<CapturedBatch>,
        batch: usize,
        options: &SampleOptions,
    ) -> Result<&'a mut CapturedBatch> {
        let serves = |p: &CapturedBatch| p.batch >= batch && p.options == *options;
        if !plan.as_ref().is_some_and(serves) {
            *plan = None; // its memory first
            *plan = Some(self.plan(batch, options)?);
        }
        match plan {
            Some(plan) => Ok(plan),
            None => bail!("a plan was just made"),
        }
    }

    fn plan(&self, batch: usize, options: &SampleOptions) -> Result<CapturedBatch> {
        let (gpu, s) = (self.gpu(), &self.network.sizes);
        let guided = (1..=s.steps).any(|t| options.guided(t, s.steps));
        let rows = if guided { 2 * batch } else { batch };
        let sized = |batch| Sizes { batch, ..*s };
        let positions = batch * s.tokens;
        let mut plan = CapturedBatch {
            batch,
            options: *options,
            rows,
            conditions: Conditions::new(gpu, &sized(s.steps * rows))?,
            trunk: Trunk::new(gpu, &sized(rows), Sets::ONE)?,
            seed: Buffer::zeros(gpu, 2)?,
            indices: Buffer::zeros(gpu, batch)?,
            codes: Buffer::zeros(gpu, positions)?,
            sums: Buffer::zeros(gpu, s.steps * positions * s.latent)?,
            damaged: Buffer::zeros(gpu, 1)?,
            graph: None,
        };
        let t: Vec<u32> = (1..=s.steps as u32)
            .flat_map(|t| std::iter::repeat_n(t, rows))
            .collect();
        plan.conditions.t.write(&t)?;
        // A first run outside the capture loads kernels and chooses algorithms.
        self.launch_all(&plan)?;
        plan.graph = Some(Graph::capture(gpu, || self.launch_all(&plan))?);
        Ok(plan)
    }

    /// Writes a run's inputs; images beyond the labels repeat the first.
    fn give(
        &self,
        plan: &mut CapturedBatch,
        labels: &[u32],
        seed: u64,
        indices: &[u64],
    ) -> Result<()> {
        let s = &self.network.sizes;
        let mut given = labels.to_vec();
        given.resize(plan.batch, labels[0]);
        given.resize(plan.rows, s.classes as u32); // the unconditional half
        plan.conditions.labels.write(&given.repeat(s.steps))?;
        plan.seed.write(&[seed as u32, (seed >> 32) as u32])?;
        plan.indices.write(indices)?;
        plan.damaged.write(&[u32::MAX])
    }

    fn launch_all(&self, plan: &CapturedBatch) -> Result<()> {
        let (gpu, s) = (self.gpu(), &self.network.sizes);
        let sized = |batch| Sizes { batch, ..*s };
        self.network
            .condition(&sized(s.steps * plan.rows), &plan.conditions)?;
        let map = [plan.batch, self.side, self.side, s.latent];
        let streams = Streams {
            seed: plan.seed.view(),
            indices: plan.indices.view(),
        };
        let lookup = self.tables.lookup()?;
        // z'_t; none for t = 0
        let place = |t: usize| Some((t.checked_sub(1)?) * map.iter().product::<usize>());
        let sum = |t: usize| -> Option<View<f32>> { Some(plan.sums.view().tail(place(t)?)) };
        let next =
            |t: usize| -> Option<ViewMut<f32>> { Some(plan.sums.view_mut().tail(place(t)?)) };
        for t in 1..=s.steps {
            let Choice {
                lambda,
                tau,
                top_k,
                top_p,
            } = plan.options.choice(t, s.steps);
            let copies = if lambda == 0.0 { 1 } else { 2 };
            let at = Advance {
                codes: (t > 1).then(|| plan.codes.view()),
                before: sum(t.saturating_sub(2)),
                after: next(t - 1),
                rows: Some(plan.trunk.joined.view_mut()),
                copies,
                t,
            };
            advance(gpu, map, lookup, streams, at)?;
            let modulations = (t - 1) * plan.rows * s.modulations();
            self.network.trunk(
                &sized(copies * plan.batch),
                &plan.trunk,
                plan.conditions.modulations.view().tail(modulations),
            )?;
            let cuts = Cuts {
                lambda,
                tau,
                top_k,
                top_p,
                gumbel: plan.options.gumbel,
                t,
            };
            let sizes = [plan.batch, s.tokens, s.codes];
            let (codes, damaged) = (plan.codes.view_mut(), plan.damaged.view_mut());
            let logits = plan.trunk.logits.view();
            choose(gpu, sizes, logits, streams, codes, damaged, &cuts)?;
        }
        let at = Advance {
            codes: Some(plan.codes.view()),
            before: sum(s.steps - 1),
            after: next(s.steps),
            rows: None,
            copies: 0,
            t: s.steps + 1,
        };
        advance(gpu, map, lookup, streams, at)
    }
}

impl CapturedBatch {
    fn launch(&self) -> Result<()> {
        match &self.graph {
            Some(graph) => graph.launch(),
            None => bail!("sampling: no work was captured"),
        }
    }
}
