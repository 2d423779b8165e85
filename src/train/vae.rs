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

use super::adversary::{Adversary, Judged};
use super::checkpoint::{Contents, counter};
use super::dead_codes::DeadCodes;
use super::grads::{self, Gradients, gradients, seed};
use super::init::set_what_fits;
use super::lr::ramp;
use super::optimizer::Optimizer;
use super::reduce;
use super::stage::{Checkpointed, Micro, Stage, Update};
use super::step_metrics::{StepMetrics, round};
use super::usage::{Usage, choices};
use super::validation::Validation;
use crate::config::Config;
use crate::data::loader::Batch;
use crate::error::{Context, Result};
use crate::model::losses::{adaptive_weight, mean_squared_error};
use crate::model::perceptual::Lpips;
use crate::model::tokenizer::{Tokenizer, straight_through};
use crate::ops::tape::plain;
use crate::ops::{HeldWeights, Noise, Quantized, Tape, global_norm};
use crate::sample::Scale;
use crate::store::Scope;
use crate::store::tensors;

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
    usage: Usage,
    dead_codes: DeadCodes,
}

/// The iterator that batches come from.
pub type Batches = Box<dyn Iterator<Item = Result<Batch>>>;

/// What an update needs from a micro-batch besides the gradients.
pub struct Rest {
    quantized: Quantized,
    judged: Option<Judged>,
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
        let optimizer = Optimizer::new(scope.finish(), &config.train_vae, true)?;
        let average = Scope::load(&optimizer.average(), &device);
        let average = Tokenizer::new(&config, &average)?.computing(compute);
        let adversary = (config.loss.disc_weight > 0.0)
            .then(|| Adversary::new(&config.loss, &config.train_vae, seed, &device))
            .transpose()?;
        Ok(Self {
            usage: Usage::new(config.quantizer.steps, config.quantizer.codebook_size),
            dead_codes: DeadCodes::new(config.quantizer.codebook_size),
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

    /// Loads weights of a file where they match, into the parameters and the average.
    pub fn start_from(&mut self, path: &Path) -> Result<()> {
        set_what_fits(&self.optimizer.params, &tensors::read(path)?, path)?;
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
        let mut loss = mean_squared_error(&at, x)?;
        metrics.add_scalar("mse", &loss);
        if let Some(lpips) = &self.lpips {
            let perceptual = lpips.distance(x, &at)?;
            metrics.add_scalar("perceptual", &perceptual);
            loss = weighted_sum(&loss, &perceptual, self.config.loss.perceptual_weight)?;
        }
        let value = loss.detach();
        Ok((value, grads::at(tape.backward(loss)?, &at)?))
    }

    /// The adversarial loss (f64) and its gradient with respect to `o`, both times η·λ·ramp.
    fn adversarial(
        &self,
        adversary: &Adversary,
        step: u64,
        features: &Tensor,
        o: &Tensor,
        reconstruction: &Tensor,
        metrics: &mut StepMetrics,
    ) -> Result<(Tensor, Tensor)> {
        let _span = info_span!("losses").entered();
        let (loss, gradient) = adversary.image_gradient(o)?;
        let at_weight = |gradient: &Tensor| -> Result<Tensor> {
            let gradient = self.tokenizer.last_layer_grad(features, gradient)?;
            Ok(global_norm([&reduce::mean(gradient)?])?)
        };
        let lambda = adaptive_weight(&at_weight(reconstruction)?, &at_weight(&gradient)?)?;
        let config = &self.config.loss;
        let ramp = ramp(step, config.disc_start, config.disc_ramp);
        let weight = (&lambda * (config.disc_weight * ramp))?;
        metrics.add_scalar("adversarial", &loss);
        metrics.add_scalar("adaptive_weight", &lambda);
        let gradient = gradient.broadcast_mul(&weight.to_dtype(gradient.dtype())?)?;
        Ok(((loss.to_dtype(DType::F64)? * weight)?, gradient))
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
        let codes = quantized.iter().map(|q| &q.codes);
        let choices = choices(codes, config.steps, config.codebook_size)?;
        let choices = reduce::counts(choices)?;
        self.usage.add(&choices);
        self.dead_codes.count(&choices);
        let (mut metrics, done) = (StepMetrics::default(), update.step + 1);
        let due = config.restart_dead_codes
            && done.is_multiple_of(config.restart_every)
            && (done as f64) < RESTARTS * update.steps as f64;
        if due {
            let noisy: Vec<&Tensor> = quantized.iter().map(|q| &q.noisy).collect();
            let (optimizer, seed) = (&self.optimizer, self.seed);
            let count = self
                .dead_codes
                .restart(optimizer, &noisy, seed, update.step)?;
            metrics.add("codes_restarted", count as f64);
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
        let tape = Tape::start();
        let v = info_span!("encode").in_scope(|| self.tokenizer.encode(&x))?; // [B,h,w,d]
        let noise = Noise::Drawn {
            seed: self.seed,
            indices: &batch.indices,
        };
        let quantized =
            info_span!("quantize").in_scope(|| self.tokenizer.quantizer.quantize(&v, &noise))?;
        let sum = quantized.sums.get(self.tokenizer.quantizer.steps())?;
        let decode = info_span!("decode").entered();
        let features = self.tokenizer.features(&straight_through(&v, &sum)?)?;
        let out = self.tokenizer.output(&features)?; // [B,H,W,3]
        drop(decode);
        let o = out.detach();
        let (loss, mut at_image) = self.reconstruction(&x, &o, &mut metrics)?;
        let mut total = loss.to_dtype(DType::F64)?;
        let adversary = self
            .adversary
            .as_ref()
            .filter(|_| step >= self.config.loss.disc_start);
        if let Some(adversary) = adversary {
            let features = features.detach();
            let (more, gradient) =
                self.adversarial(adversary, step, &features, &o, &at_image, &mut metrics)?;
            total = (total + more)?;
            at_image = (at_image + gradient)?;
        }
        let quant = self.tokenizer.quantizer.loss(&v, &quantized)?;
        let weight = self.config.loss.quant_weight;
        metrics.add_scalar("quant", &quant);
        let weighted = (quant.to_dtype(DType::F64)? * weight)?;
        metrics.add_scalar("loss", &(total + weighted)?);
        let backward = info_span!("backward").entered();
        let loss = weighted_sum(&seed(&out, &at_image)?, &quant, weight)?;
        // Only the tape holds the graph now, so that memory is freed as the tape is walked.
        drop((quant, out, features, v));
        let gradients = gradients(tape.backward(loss)?, &self.optimizer.params)?;
        drop(backward);
        let judged = adversary
            .map(|a| a.judge(&x, &o, &mut metrics))
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
            adversary.update(judged)?;
        }
        self.count_codes(&quantized, update)
    }
}

impl Checkpointed for VaeStage {
    fn metrics(&mut self) -> Result<Map<String, Value>> {
        let mut metrics = self.validation.metrics(&self.average)?;
        let perplexity: Value = self.usage.perplexity().into_iter().map(round).collect();
        metrics.insert("codes_used_t".into(), json!(self.usage.used()));
        metrics.insert("perplexity_t".into(), perplexity);
        self.usage.clear();
        Ok(metrics)
    }

    fn images(&mut self, path: &Path, scale: Scale) -> Result<Map<String, Value>> {
        self.validation
            .picture(&self.average, self.lpips.as_ref(), path, scale)
    }

    fn contents(&self) -> Result<Contents> {
        let mut optimizer = self.optimizer.state();
        optimizer.insert(USAGE.to_string(), self.usage.tensor()?);
        optimizer.insert(COUNTS.to_string(), self.dead_codes.tensor()?);
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
        self.usage.restore(&rest.remove(USAGE).context(missing)?)?;
        self.dead_codes
            .restore(&rest.remove(COUNTS).context(missing)?)
    }

    fn counters(&self) -> Result<BTreeMap<String, u64>> {
        let discriminator = self.adversary.as_ref().map_or(0, Adversary::updates);
        Ok(BTreeMap::from([
            ("updates".to_string(), self.optimizer.updates),
            ("discriminator_updates".to_string(), discriminator),
        ]))
    }
}

/// a + weight·b, scalars.
fn weighted_sum(a: &Tensor, b: &Tensor, weight: f64) -> TensorResult<Tensor> {
    plain([a, b], move |[a, b]| a + (b * weight)?)
}
