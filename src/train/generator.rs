//! Training the generator (docs/design.md, section 1). Every image gives one example at one
//! uniformly drawn step t [ours], (ε_t, z'_{t−1}) → c_t, with fresh noise at every training step;
//! the loss is cross-entropy over the tokens.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::{Map, Value};
use tracing::info_span;

use super::checkpoint::{Contents, counter};
use super::grads::{Gradients, gradients};
use super::init::Start;
use super::latents::{LatentBatch, Latents};
use super::optimizer::Optimizer;
use super::stage::{Checkpointed, Micro, Stage, Update};
use super::step_metrics::StepMetrics;
use super::timesteps::Drawn;
use crate::config::{Config, HeadInit};
use crate::error::{Result, hinted};
use crate::model::generator::Generator;
use crate::model::tokenizer::Tokenizer;
use crate::ops::{Codebook, Dropout, Noise, Perturbation, Tape, arrange, cross_entropy};
use crate::rng::{Purpose, Stream};
use crate::sample::{Draws, SampleOptions, Sampler, Scale, grid, save_png, to_rgb};
use crate::store::Scope;

/// Rows and columns of the sample grid, one row per class.
const CLASSES_SHOWN: usize = 8;
const SAMPLES_PER_CLASS: usize = 4;

pub struct GeneratorStage {
    config: Config,
    seed: u64,
    device: Device,
    latents: Latents,
    /// Frozen.
    tokenizer: Tokenizer,
    perturbation: Option<Perturbation>,
    timesteps: Drawn,
    /// Sums and counts of the losses at each t since `timesteps` was brought up to date.
    losses: Vec<(f64, f64)>,
    generator: Generator,
    optimizer: Optimizer,
    classes: usize,
}

/// What a stage is built from.
pub struct Parts {
    pub config: Config,
    pub seed: u64,
    pub device: Device,
    pub latents: Latents,
    /// The frozen tokenizer.
    pub tokenizer: Tokenizer,
    pub classes: usize,
    /// Of a new run.
    pub init: Option<Start>,
}

impl GeneratorStage {
    pub fn new(parts: Parts) -> Result<Self> {
        let Parts {
            config,
            seed,
            device,
            latents,
            tokenizer,
            classes,
            init,
        } = parts;
        let scope = Scope::init(seed, &device);
        let generator = Generator::new(&config, classes, &scope)?;
        start_head(&generator, &config, &tokenizer)?;
        let params = scope.finish();
        if let Some(init) = &init {
            init.set(&params)?;
        }
        let optimizer = Optimizer::new(params, &config.train_gen, true)?;
        Ok(Self {
            seed,
            device,
            latents,
            perturbation: perturbation(&config, &tokenizer.quantizer.codebook)?,
            timesteps: Drawn::new(config.generator.timesteps, config.quantizer.steps),
            losses: vec![(0.0, 0.0); config.quantizer.steps],
            tokenizer,
            generator,
            optimizer,
            classes,
            config,
        })
    }
}

/// What perturbs the codes of examples, where the configuration asks for it.
pub fn perturbation(
    config: &Config,
    codebook: &Codebook,
) -> candle_core::Result<Option<Perturbation>> {
    match config.generator.perturb {
        0.0 => Ok(None),
        share => Perturbation::new(&codebook.embedding, share).map(Some),
    }
}

/// Initialises the head of a new generator as configured.
pub fn start_head(generator: &Generator, config: &Config, tokenizer: &Tokenizer) -> Result<()> {
    if config.generator.head_init != HeadInit::Codebook {
        return Ok(());
    }
    generator
        .head_from_codebook(
            &tokenizer.quantizer.codebook.embedding,
            config.generator.head_scale,
        )
        .map_err(|e| {
            hinted(
                e.to_string(),
                "start the head at zero with --set generator.head_init=zero",
            )
        })
}

/// The targets of a batch: timestep and (possibly dropped) label of each example.
pub struct Targets {
    pub t: Vec<u32>,
    pub labels: Vec<u32>,
}

/// Draws each example's t in 1..T, and replaces its label by the empty condition with the
/// configured probability.
pub fn draw_targets(
    config: &Config,
    timesteps: &Drawn,
    seed: u64,
    classes: usize,
    batch: &LatentBatch,
) -> Targets {
    let drop = config.generator.label_dropout as f32;
    let draws = |purpose, index| Stream::new(seed, purpose, index, 0).draws();
    let label =
        |(&label, &index): (&u32, &u64)| match draws(Purpose::LabelDrop, index).uniform() < drop {
            true => classes as u32,
            false => label,
        };
    let t = |&index: &u64| timesteps.draw(draws(Purpose::Timestep, index));
    Targets {
        t: batch.indices.iter().map(t).collect(),
        labels: batch.labels.iter().zip(&batch.indices).map(label).collect(),
    }
}

impl Stage for GeneratorStage {
    type Batch = LatentBatch;
    /// Sums and counts of the losses at each t.
    type Rest = Vec<(f64, f64)>;

    fn next(&mut self) -> Result<LatentBatch> {
        self.latents.next(&self.tokenizer, &self.device)
    }

    fn compute(&mut self, batch: LatentBatch, _: u64) -> Result<Micro<Self::Rest>> {
        let Targets { t, labels } = draw_targets(
            &self.config,
            &self.timesteps,
            self.seed,
            self.classes,
            &batch,
        );
        let noise = Noise::Drawn {
            seed: self.seed,
            indices: &batch.indices,
        };
        let examples = info_span!("quantize").in_scope(|| {
            let perturbation = self.perturbation.as_ref();
            self.tokenizer
                .quantizer
                .quantize_until_perturbed(&batch.v, &noise, &t, perturbation)
        })?;
        let tape = Tape::start();
        let forward = info_span!("forward").entered();
        let labels = Tensor::new(labels, &self.device)?;
        let condition = self
            .generator
            .condition(&labels, &Tensor::new(t.as_slice(), &self.device)?)?;
        let dropout = Dropout {
            probability: self.config.generator.dropout,
            seed: self.seed,
            indices: &batch.indices,
        };
        let dropout = (dropout.probability != 0.0).then_some(&dropout);
        let logits =
            self.generator
                .forward_dropping(&examples.noise, &examples.sum, &condition, dropout)?; // [B,N,K]
        let logits = arrange::reshape(&logits, ((), logits.dim(2)?))?;
        let entropy = cross_entropy(&logits, &examples.codes.flatten_all()?)?; // [B·N]
        drop(logits);
        let loss = arrange::mean(&entropy.loss)?;
        drop(forward);
        let mut metrics = StepMetrics::default();
        metrics.add("loss", f64::from(loss.to_scalar::<f32>()?));
        let steps = self.config.quantizer.steps;
        let tokens = |x: &Tensor| -> Result<Vec<f32>> {
            Ok(x.detach().to_dtype(candle_core::DType::F32)?.to_vec1()?)
        };
        let losses = by_timestep(&tokens(&entropy.loss)?, &t, steps);
        metrics.add_curve("loss_t", &losses);
        drop((entropy.loss, condition));
        let backward = info_span!("backward").entered();
        let gradients = gradients(tape.backward(loss)?, self.optimizer.trained())?;
        drop(backward);
        metrics.add_curve(
            "accuracy_t",
            &by_timestep(&tokens(&entropy.correct)?, &t, steps),
        );
        Ok(Micro {
            gradients,
            metrics,
            rest: losses,
        })
    }

    fn update(
        &mut self,
        gradients: &Gradients,
        losses: Vec<Self::Rest>,
        update: Update,
    ) -> Result<StepMetrics> {
        self.optimizer.update(gradients, update.lr, update.scale)?;
        if self.timesteps.by_loss() {
            // In the order of all processes' micro-batches, so that the sums have the same bits.
            for micro in losses {
                let bytes = micro.iter().flat_map(|(loss, count)| [*loss, *count]);
                let bytes: Vec<u8> = bytes.flat_map(f64::to_le_bytes).collect();
                for theirs in update.world.gather(&bytes)? {
                    let (values, _) = theirs.as_chunks::<8>();
                    let values = values.iter().map(|x| f64::from_le_bytes(*x));
                    let sums = self.losses.iter_mut().flat_map(|(a, b)| [a, b]);
                    sums.zip(values).for_each(|(sum, x)| *sum += x);
                }
            }
        }
        if self.timesteps.refreshes(update.step) {
            self.timesteps.refresh(&self.losses);
            self.losses.fill((0.0, 0.0));
        }
        Ok(StepMetrics::default())
    }
}

impl Checkpointed for GeneratorStage {
    fn metrics(&mut self) -> Result<Map<String, Value>> {
        Ok(Map::new())
    }

    /// Samples of the moving average, with the same noise and classes every time.
    fn images(&mut self, path: &Path, scale: Scale) -> Result<Map<String, Value>> {
        // The average does not change while the images are made.
        let scope = Scope::load(&self.optimizer.average(), &self.device).frozen();
        let average = Generator::new(&self.config, self.classes, &scope)?;
        let sampler = Sampler::new(&average, &self.tokenizer, &self.config, self.classes);
        picture(&sampler, &self.config, self.classes, self.seed, path, scale)?;
        Ok(Map::new())
    }

    fn contents(&self) -> Result<Contents> {
        let mut optimizer = self.optimizer.state();
        optimizer.extend(self.timesteps.tensors(&self.losses)?);
        Ok(Contents {
            model: self.optimizer.params.tensors(),
            ema: self.optimizer.average(),
            optimizer,
        })
    }

    fn restore(&mut self, contents: Contents, counters: &BTreeMap<String, u64>) -> Result<()> {
        let updates = counter(counters, "updates")?;
        let mut rest = contents.optimizer;
        if self.timesteps.by_loss() {
            self.losses = self.timesteps.restore(&mut rest)?;
        }
        let (model, ema) = (&contents.model, &contents.ema);
        self.optimizer.restore(model, ema, &mut rest, updates)
    }

    fn counters(&self) -> Result<BTreeMap<String, u64>> {
        Ok(BTreeMap::from([(
            "updates".to_string(),
            self.optimizer.updates,
        )]))
    }
}

/// A grid of samples, one row per class, for up to eight classes spread over all.
pub fn picture(
    sampler: &Sampler,
    config: &Config,
    classes: usize,
    seed: u64,
    path: &Path,
    scale: Scale,
) -> Result<()> {
    let shown = classes.min(CLASSES_SHOWN);
    let labels: Vec<u32> = (0..shown * SAMPLES_PER_CLASS)
        .map(|i| (i / SAMPLES_PER_CLASS * classes / shown) as u32)
        .collect();
    let indices: Vec<u64> = (0..labels.len() as u64).collect();
    let draws = Draws::Seeded {
        seed,
        indices: &indices,
    };
    let options = SampleOptions::from(&config.sample);
    let pictures = to_rgb(&sampler.images(&labels, &draws, &options)?)?;
    save_png(&grid(&pictures, SAMPLES_PER_CLASS, scale)?, path)
}

/// Sum and number of the token values of each t; `t` has one entry per image, `values` one per
/// token.
fn by_timestep(values: &[f32], t: &[u32], steps: usize) -> Vec<(f64, f64)> {
    let mut sums = vec![(0.0, 0.0); steps];
    let tokens = values.len() / t.len().max(1);
    for (image, &t) in values.chunks(tokens.max(1)).zip(t) {
        let (sum, count) = &mut sums[t as usize - 1];
        *sum += image.iter().map(|&x| f64::from(x)).sum::<f64>();
        *count += image.len() as f64;
    }
    sums
}
