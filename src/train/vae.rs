//! Training the tokenizer (docs/design.md, section 1): squared error + L_quant + perceptual +
//! η·λ·adversarial loss.
//!
//! The graph is cut at the reconstructed image o. The gradients at o of the reconstruction losses
//! and of the adversarial loss are computed once each, weighted against each other (λ) and summed.
//! One backward pass then continues from o through decoder and encoder, together with L_quant. VGG
//! and discriminator are differentiated once, and only with respect to the image.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Result as TensorResult, Tensor, Var};
use serde_json::{Map, Value, json};
use tracing::info_span;

use super::adversary::{Adversary, Judged, Seen};
use super::checkpoint::{Contents, counter};
use super::code_counts::CodeCounts;
use super::dead_codes;
use super::grads::{self, Gradients, gradients};
use super::init::Start;
use super::lr::ramp;
use super::optimizer::Optimizer;
use super::stage::{Checkpointed, Micro, Stage, Update};
use super::step_metrics::{StepMetrics, round};
use super::validation::Validation;
use crate::config::Config;
use crate::data::loader::Batch;
use crate::error::{Context, Result};
use crate::model::losses::{adaptive_weight, mean_squared_error};
use crate::model::perceptual::Lpips;
use crate::model::tokenizer::{Tokenizer, of_decoder, straight_through};
use crate::ops::{self, HeldWeights, Noise, Quantized, Tape, global_norm};
use crate::sample::Scale;
use crate::store::Scope;

const USAGE: &str = "interval_codes";
const COUNTS: &str = "code_counts";
/// The fraction of a run during which dead codes are restarted [ours].
const RESTARTS: f64 = 0.8;

pub struct VaeStage {
    config: Config,
    seed: u64,
    device: Device,
    batches: Batches,
    tokenizer: Tokenizer,
    /// The tokenizer with the moving average's weights.
    average: Tokenizer,
    optimizer: Optimizer,
    adversary: Option<Adversary>,
    lpips: Option<Lpips>,
    validation: Validation,
    counts: CodeCounts,
}

/// The iterator that batches come from.
pub type Batches = Box<dyn Iterator<Item = Result<Batch>>>;

/// What an update needs from a micro-batch besides the gradients.
pub struct Rest {
    quantized: Quantized,
    judged: Option<Judged>,
}

/// The adversarial loss (f64), weighted, and the gradients of all losses at the image, with respect
/// to it and to the decoder's last weight.
struct Adversarial {
    loss: Tensor,
    at_image: Tensor,
    at_last_weight: Tensor,
}

/// What a stage is built from.
pub struct Parts {
    pub config: Config,
    pub seed: u64,
    pub device: Device,
    /// An endless iterator over micro-batches.
    pub batches: Batches,
    /// [B,H,W,3] in [-1,1]
    pub validation: Tensor,
    pub lpips: Option<Lpips>,
}

impl VaeStage {
    pub fn new(parts: Parts) -> Result<Self> {
        let Parts {
            config,
            seed,
            device,
            ..
        } = parts;
        let scope = Scope::init(seed, &device);
        let compute = config.train_vae.compute_type.dtype();
        let tokenizer = Tokenizer::new(&config, &scope)?
            .computing(compute)
            .recomputing(config.train_vae.recompute_levels);
        let decoder_only = config.loss.decoder_only;
        let optimizer = Optimizer::new(scope.finish(), &config.train_vae, true)?
            .training(|name| !decoder_only || of_decoder(name));
        let average = Scope::load(&optimizer.average(), &device);
        let average = Tokenizer::new(&config, &average)?.computing(compute);
        let adversary = (config.loss.disc_weight > 0.0)
            .then(|| Adversary::new(&config.loss, &config.train_vae, seed, &device))
            .transpose()?;
        Ok(Self {
            counts: {
                let quantizer = &config.quantizer;
                CodeCounts::new(quantizer.steps, quantizer.codebook_size, &device)?
            },
            validation: Validation::new(parts.validation.to_device(&device)?, seed)?,
            batches: parts.batches,
            lpips: parts.lpips.map(|lpips| lpips.computing(compute)),
            config,
            seed,
            device,
            tokenizer,
            average,
            optimizer,
            adversary,
        })
    }

    /// Sets the parameters and the average to other weights, where they match.
    pub fn start_from(&mut self, start: &Start) -> Result<()> {
        let params = &self.optimizer.params;
        match self.config.loss.decoder_only {
            true => start.set_keeping_codes(params, &self.config)?,
            false => start.set(params)?,
        }
        self.optimizer.restart_average()
    }

    /// Weighted sum of the squared error and the perceptual distance between `o` and `x`, and its
    /// gradient with respect to `o`.
    fn reconstruction(
        &self,
        x: &Tensor,
        o: &Tensor,
        metrics: &mut StepMetrics,
    ) -> TensorResult<(Tensor, Tensor)> {
        let _span = info_span!("losses").entered();
        let (at, tape) = (Var::from_tensor(o)?, Tape::start());
        let error = mean_squared_error(&at, x)?;
        metrics.add_scalar("mse", &error);
        let mut value = error.detach();
        let mut losses = vec![at_weight(error, 1.0)?];
        if let Some(lpips) = &self.lpips {
            let perceptual = lpips.distance(x, &at)?;
            metrics.add_scalar("perceptual", &perceptual);
            let weight = self.config.loss.perceptual_weight;
            value = (value + (perceptual.detach() * weight)?)?;
            losses.push(at_weight(perceptual, weight)?);
        }
        Ok((value, grads::at(tape.backward_from(losses)?, &at)?))
    }

    /// The adversarial loss times η·λ·ramp, and its gradients added to those of `reconstruction`.
    fn adversarial(
        &self,
        adversary: &Adversary,
        step: u64,
        features: &Tensor,
        fake: &Seen,
        reconstruction: &Tensor,
        metrics: &mut StepMetrics,
    ) -> Result<Adversarial> {
        let _span = info_span!("losses").entered();
        let (loss, gradient) = adversary.image_gradient(fake)?;
        let at_weight = |gradient: &Tensor| self.tokenizer.last_layer_grad(features, gradient);
        let of_weight = [at_weight(reconstruction)?, at_weight(&gradient)?];
        let norm = |gradient: &Tensor| -> Result<Tensor> { Ok(global_norm([gradient])?) };
        let config = &self.config.loss;
        let norms = [norm(&of_weight[0])?, norm(&of_weight[1])?];
        let lambda = adaptive_weight(&norms[0], &norms[1], config.adaptive_weight_max)?;
        let ramp = ramp(step, config.disc_start, config.disc_ramp);
        let weight = (&lambda * (config.disc_weight * ramp))?;
        metrics.add_scalar("adversarial", &loss);
        metrics.add_scalar("adaptive_weight", &lambda);
        Ok(Adversarial {
            at_image: ops::add_scaled(reconstruction, &gradient, &weight)?,
            at_last_weight: ops::add_scaled(&of_weight[0], &of_weight[1], &weight)?,
            loss: (loss.to_dtype(DType::F64)? * weight)?,
        })
    }

    /// Packs the weights of both networks for the passes of a step in bf16.
    fn hold_weights(&self) -> Result<Option<HeldWeights<'_>>> {
        if self.config.train_vae.compute_type.dtype() != DType::BF16 {
            return Ok(None);
        }
        let discriminator = self.adversary.iter().flat_map(Adversary::weights);
        let weights = self.optimizer.params.iter().map(|(_, weight)| weight);
        Ok(Some(HeldWeights::new(weights.chain(discriminator))?))
    }

    /// Counts the step's code choices and, when it is due, restarts dead codes.
    fn count_codes(&mut self, quantized: &[Quantized], update: Update) -> Result<StepMetrics> {
        let config = &self.config.quantizer;
        let world = update.world;
        self.counts
            .count(world, quantized.iter().map(|q| &q.codes))?;
        let (mut metrics, done) = (StepMetrics::default(), update.step + 1);
        if self.config.loss.decoder_only {
            return Ok(metrics);
        }
        let due = config.restart_dead_codes
            && done.is_multiple_of(config.restart_every)
            && (done as f64) < RESTARTS * update.steps as f64;
        if due {
            let noisy: Vec<&Tensor> = quantized.iter().map(|q| &q.noisy).collect();
            let (optimizer, seed) = (&self.optimizer, self.seed);
            let dead_codes = self.counts.dead_codes()?;
            let codes = dead_codes.dead();
            dead_codes::restart(world, &codes, optimizer, &noisy, seed, update.step)?;
            metrics.add("codes_restarted", codes.len() as f64);
        }
        Ok(metrics)
    }
}

impl Stage for VaeStage {
    type Batch = Batch;
    type Rest = Rest;

    fn next(&mut self) -> Result<Batch> {
        let batch = info_span!("data wait").in_scope(|| self.batches.next());
        batch.context("the loader has ended")?
    }

    fn compute(&mut self, batch: Batch, step: u64) -> Result<Micro<Rest>> {
        let mut metrics = StepMetrics::default();
        let x = batch.images.to_device(&self.device)?;
        let _packed = self.hold_weights()?;
        let decoder_only = self.config.loss.decoder_only;
        // No gradient passes through what makes the codes if these stay.
        let whole = (!decoder_only).then(Tape::start);
        let v = info_span!("encode").in_scope(|| self.tokenizer.encode(&x))?; // [B,h,w,d]
        let noise = Noise::Drawn {
            seed: self.seed,
            indices: &batch.indices,
        };
        let quantized =
            info_span!("quantize").in_scope(|| self.tokenizer.quantizer.quantize(&v, &noise))?;
        let sum = quantized.sums.get(self.tokenizer.quantizer.steps())?;
        let tape = whole.unwrap_or_else(Tape::start);
        let z = match decoder_only {
            true => sum.detach(),
            false => straight_through(&v, &sum)?,
        };
        let adversary = self
            .adversary
            .as_ref()
            .filter(|_| step >= self.config.loss.disc_start);
        let decode = info_span!("decode").entered();
        let features = self.tokenizer.features(&z)?;
        // The last weight's gradient is a by-product of the adaptive weight.
        let out = match adversary {
            Some(_) => self.tokenizer.output_by_fixed_weight(&features)?,
            None => self.tokenizer.output(&features)?,
        }; // [B,H,W,3]
        drop(decode);
        let o = out.detach();
        let (loss, mut at_image) = self.reconstruction(&x, &o, &mut metrics)?;
        let mut total = loss.to_dtype(DType::F64)?;
        let (mut fake, mut at_last_weight) = (None, None);
        if let Some(adversary) = adversary {
            let features = features.detach();
            let seen = info_span!("losses").in_scope(|| adversary.look(&o))?;
            let adversarial =
                self.adversarial(adversary, step, &features, &seen, &at_image, &mut metrics)?;
            total = (total + adversarial.loss)?;
            at_image = adversarial.at_image;
            (fake, at_last_weight) = (Some(seen), Some(adversarial.at_last_weight));
        }
        let mut losses = vec![(out, at_image)];
        if !decoder_only {
            let quant = self.tokenizer.quantizer.loss(&v, &quantized)?;
            let weight = self.config.loss.quant_weight;
            metrics.add_scalar("quant", &quant);
            total = (total + (quant.to_dtype(DType::F64)? * weight)?)?;
            losses.push(at_weight(quant, weight)?);
        }
        metrics.add_scalar("loss", &total);
        let backward = info_span!("backward").entered();
        // Only the tape holds the graph now, so that memory is freed as the tape is walked.
        drop((features, v, z));
        let mut store = tape.backward_from(losses)?;
        if let Some(gradient) = at_last_weight {
            store.insert(self.tokenizer.last_layer_weight(), gradient);
        }
        let gradients = gradients(store, self.optimizer.trained())?;
        drop(backward);
        let judged = (adversary.zip(fake))
            .map(|(adversary, fake)| adversary.judge(&x, fake, &mut metrics))
            .transpose()?;
        let rest = Rest { quantized, judged };
        Ok(Micro {
            gradients,
            metrics,
            rest,
        })
    }

    fn update(
        &mut self,
        gradients: &Gradients,
        rest: Vec<Rest>,
        update: Update,
    ) -> Result<StepMetrics> {
        self.optimizer.update(gradients, update.lr, update.scale)?;
        let (mut quantized, mut judged) = (Vec::new(), Vec::new());
        for rest in rest {
            quantized.push(rest.quantized);
            judged.extend(rest.judged);
        }
        if let Some(adversary) = &mut self.adversary {
            let share = update.lr / self.config.train_vae.lr;
            adversary.update(update.world, judged, share)?;
        }
        self.count_codes(&quantized, update)
    }
}

impl Checkpointed for VaeStage {
    fn metrics(&mut self) -> Result<Map<String, Value>> {
        let mut metrics = self.validation.metrics(&self.average)?;
        let usage = self.counts.usage()?;
        let perplexity: Value = usage.perplexity().into_iter().map(round).collect();
        metrics.insert("codes_used_t".into(), json!(usage.used()));
        metrics.insert("perplexity_t".into(), perplexity);
        self.counts.clear_usage()?;
        Ok(metrics)
    }

    fn images(&mut self, path: &Path, scale: Scale) -> Result<Map<String, Value>> {
        self.validation
            .picture(&self.average, self.lpips.as_ref(), path, scale)
    }

    fn contents(&self) -> Result<Contents> {
        let mut optimizer = self.optimizer.state();
        optimizer.insert(USAGE.to_string(), self.counts.usage()?.tensor()?);
        optimizer.insert(COUNTS.to_string(), self.counts.dead_codes()?.tensor()?);
        optimizer.extend(self.adversary.iter().flat_map(Adversary::state));
        Ok(Contents {
            model: self.optimizer.params.tensors(),
            ema: self.optimizer.average(),
            optimizer,
        })
    }

    fn restore(&mut self, contents: Contents, counters: &BTreeMap<String, u64>) -> Result<()> {
        let count = |name: &str| counter(counters, name);
        let mut rest = contents.optimizer;
        let (model, ema) = (&contents.model, &contents.ema);
        self.optimizer
            .restore(model, ema, &mut rest, count("updates")?)?;
        if let Some(adversary) = &mut self.adversary {
            adversary.restore(&mut rest, count("discriminator_updates")?)?;
        }
        let missing = "the checkpoint holds no code counts";
        let mut take = |name: &str| rest.remove(name).context(missing);
        let (usage, dead_codes) = (take(USAGE)?, take(COUNTS)?);
        self.counts.restore(&usage, &dead_codes)
    }

    fn counters(&self) -> Result<BTreeMap<String, u64>> {
        let discriminator = self.adversary.as_ref().map_or(0, Adversary::updates);
        Ok(BTreeMap::from([
            ("updates".to_string(), self.optimizer.updates),
            ("discriminator_updates".to_string(), discriminator),
        ]))
    }
}

/// A loss, a scalar, and the gradient that begins there.
fn at_weight(loss: Tensor, weight: f64) -> TensorResult<(Tensor, Tensor)> {
    let weight = Tensor::full(weight as f32, loss.shape(), loss.device())?;
    Ok((loss, weight))
}
