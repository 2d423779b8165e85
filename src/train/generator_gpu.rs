//! The generator's stage in bf16 on a GPU: the whole step runs as kernels ([`super::gpu`]); the
//! host reads back only to log, save and sample.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use serde_json::{Map, Value, json};
use tracing::info_span;

use super::checkpoint::{Contents, counter};
use super::generator::{Parts, Targets, draw_targets, picture, start_head};
use super::gpu::{GpuTrainer, MicroBatch};
use super::gpu_memory;
use super::latents::Latents;
use super::lr::learning_rate;
use super::optimizer::{FIRST, SECOND};
use super::stage::{Checkpointed, Step};
use super::step_metrics::{StepMetrics, round};
use super::timesteps::Drawn;
use crate::config::{Config, TrainConfig};
use crate::error::{Context, Error, Result, usage};
use crate::gpu_error;
use crate::model::generator::Generator;
use crate::model::tokenizer::Tokenizer;
use crate::ops::cuda::{Gpu, View};
use crate::sample::gpu::GpuSampler;
use crate::sample::{Sampler, Scale};
use crate::store::Scope;
use crate::world::World;

/// Name in a checkpoint of the counts for the log line in progress, [T,3].
const TALLY: &str = "interval_tally";

pub struct GpuGeneratorStage {
    config: Config,
    seed: u64,
    device: Device,
    latents: Latents,
    /// Frozen.
    tokenizer: Tokenizer,
    trainer: GpuTrainer,
    timesteps: Drawn,
    classes: usize,
    /// Whether this rank keeps the tallies of all.
    is_first: bool,
}

impl GpuGeneratorStage {
    /// Of a rank of `world`.
    ///
    /// Errors: the device is no GPU; sizes that the kernels do not support, by name.
    pub fn new(parts: Parts, world: &World) -> Result<Self> {
        let Parts {
            config,
            seed,
            device,
            latents,
            tokenizer,
            classes,
            init,
        } = parts;
        GpuSampler::serves(&config, classes).map_err(|error| {
            usage(
                error.to_string(),
                "--set train_gen.compute_type=f32 trains other sizes, slower (with recompute_blocks=0)",
            )
        })?;
        let gpu = Arc::new(Gpu::new(device.as_cuda_device()?)?);
        let scope = Scope::init(seed, &Device::Cpu);
        let generator = Generator::new(&config, classes, &scope)?;
        start_head(&generator, &config, &tokenizer)?;
        let params = scope.finish();
        if let Some(init) = &init {
            init.set(&params)?;
        }
        let quantizer = &tokenizer.quantizer;
        let batch = config.train_gen.micro_batch();
        let mut trainer = GpuTrainer::new(
            &gpu,
            &config,
            classes,
            batch,
            &quantizer.codebook,
            &quantizer.schedule,
            seed,
        )
        .map_err(|error| with_oom_hint(error.into(), batch))?;
        trainer.load(&params.tensors())?;
        Ok(Self {
            timesteps: Drawn::new(config.generator.timesteps, config.quantizer.steps),
            config,
            seed,
            device,
            latents,
            tokenizer,
            trainer,
            classes,
            is_first: world.is_first(),
        })
    }
}

/// Says of an out-of-memory error how many images were too many, and which settings need less.
fn with_oom_hint(error: Error, batch: usize) -> Error {
    match gpu_error::cause(&format!("{error:#}")) {
        Some(gpu_error::Cause::OutOfMemory) => gpu_error::out_of_memory(
            format!("the GPU has not enough memory for {batch} images at a time"),
            gpu_memory::GENERATOR,
        ),
        _ => error,
    }
}

impl Step for GpuGeneratorStage {
    fn step(
        &mut self,
        world: &World,
        config: &TrainConfig,
        step: u64,
        steps: u64,
    ) -> Result<StepMetrics> {
        self.launch(world, config, step, steps)
            .map_err(|error| with_oom_hint(error, config.micro_batch()))
    }
}

impl GpuGeneratorStage {
    /// The metrics stay on the GPU until they are logged, those of all ranks at rank 0.
    fn launch(
        &mut self,
        world: &World,
        config: &TrainConfig,
        step: u64,
        steps: u64,
    ) -> Result<StepMetrics> {
        for micro in 0..config.accumulate / world.size() {
            let batch = self.latents.next(&self.tokenizer, &self.device)?;
            let Targets { t, labels } = draw_targets(
                &self.config,
                &self.timesteps,
                self.seed,
                self.classes,
                &batch,
            );
            let examples = MicroBatch {
                t: &t,
                labels: &labels,
                indices: &batch.indices,
            };
            let _span = info_span!("launch").entered();
            let v = batch.v.contiguous()?;
            self.trainer
                .compute(View::of(&v)?, examples, micro == 0, config.accumulate)?;
        }
        self.trainer.sum(world)?;
        self.trainer.update(learning_rate(config, step, steps))?;
        if self.timesteps.refreshes(step) {
            self.timesteps.refresh(&self.trainer.losses()?);
            self.trainer
                .set_losses(&vec![(0.0, 0.0); self.config.quantizer.steps])?;
        }
        if !self.is_first {
            self.trainer.leave_tally()?;
            // Rank 0 does it for a log line, of which the last step has one.
            if (step + 1).is_multiple_of(config.log_every) || step + 1 == steps {
                self.latents.check()?;
            }
        }
        Ok(StepMetrics::default())
    }
}

impl Checkpointed for GpuGeneratorStage {
    fn metrics(&mut self) -> Result<Map<String, Value>> {
        self.latents.check()?;
        let (norm, _, _) = self.trainer.state()?;
        let tally = self.trainer.take_tally()?;
        let tokens: f64 = tally.iter().map(|t| t.tokens).sum();
        let loss: f64 = tally.iter().map(|t| t.loss).sum();
        let mean = |sum: f64, tokens: f64| match tokens > 0.0 {
            true => json!(round(sum / tokens)),
            false => Value::Null,
        };
        let mut line = Map::new();
        line.insert(
            "accuracy_t".into(),
            tally.iter().map(|t| mean(t.hits, t.tokens)).collect(),
        );
        line.insert("grad_norm".into(), json!(round(norm)));
        line.insert("loss".into(), mean(loss, tokens));
        line.insert(
            "loss_t".into(),
            tally.iter().map(|t| mean(t.loss, t.tokens)).collect(),
        );
        Ok(line)
    }

    fn images(&mut self, path: &Path, scale: Scale) -> Result<Map<String, Value>> {
        let [_, average, _, _] = self.trainer.contents()?;
        let generator = Generator::new(
            &self.config,
            self.classes,
            &Scope::load(&average, &self.device),
        )?;
        let sampler = Sampler::new(&generator, &self.tokenizer, &self.config, self.classes)
            .on_gpu(&self.config, &average)?;
        picture(&sampler, &self.config, self.classes, self.seed, path, scale)?;
        Ok(Map::new())
    }

    fn contents(&self) -> Result<Contents> {
        let [model, ema, first, second] = self.trainer.contents()?;
        let named = |prefix: &'static str, tensors: BTreeMap<String, Tensor>| {
            tensors
                .into_iter()
                .map(move |(name, tensor)| (format!("{prefix}{name}"), tensor))
        };
        let tally = Tensor::from_vec(self.trainer.tally()?, ((), 3), &Device::Cpu)?;
        let optimizer = named(FIRST, first)
            .chain(named(SECOND, second))
            .chain([(TALLY.to_string(), tally)])
            .chain(self.timesteps.tensors(&self.trainer.losses()?)?)
            .collect();
        Ok(Contents {
            model,
            ema,
            optimizer,
        })
    }

    fn restore(&mut self, contents: Contents, counters: &BTreeMap<String, u64>) -> Result<()> {
        let moments = |prefix: &str| -> BTreeMap<String, Tensor> {
            let own = |(name, tensor): (&String, &Tensor)| {
                Some((name.strip_prefix(prefix)?.to_string(), tensor.clone()))
            };
            contents.optimizer.iter().filter_map(own).collect()
        };
        self.trainer.restore(
            &contents.model,
            &contents.ema,
            &moments(FIRST),
            &moments(SECOND),
            [counter(counters, "updates")?, counter(counters, "skipped")?],
        )?;
        let mut rest = contents.optimizer;
        if self.timesteps.by_loss() {
            let losses = self.timesteps.restore(&mut rest)?;
            self.trainer.set_losses(&losses)?;
        }
        let tally = rest.get(TALLY);
        let tally = tally.context("the checkpoint holds no tally of its log line")?;
        self.trainer.set_tally(&tally.flatten_all()?.to_vec1()?)?;
        if !self.is_first {
            self.trainer.leave_tally()?;
        }
        Ok(())
    }

    fn counters(&self) -> Result<BTreeMap<String, u64>> {
        let (_, updates, skipped) = self.trainer.state()?;
        Ok(BTreeMap::from([
            ("updates".to_string(), updates),
            ("skipped".to_string(), skipped),
        ]))
    }

    fn skipped(&self) -> Result<u64> {
        Ok(self.trainer.state()?.2)
    }
}
