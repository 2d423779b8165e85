//! The models can learn: a gradient reaches every parameter, and the models can overfit a few
//! examples.

use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor};
use rdpm::config::Config;
use rdpm::model::{Discriminator, Generator, Tokenizer, losses, straight_through};
use rdpm::ops::optimizer::{AdamStep, adam_step};
use rdpm::ops::quantize::{Examples, Noise};
use rdpm::ops::tape::plain;
use rdpm::ops::{Tape, add, arrange, cross_entropy, global_norm};
use rdpm::rng::{Purpose, normal, uniform};
use rdpm::store::{Params, Scope};

const CLASSES: usize = 3;

/// Images of 16×16 pixels, latents of 4×4×4, 64 codes, 4 steps.
fn config() -> Config {
    let mut config = Config::default();
    config.data.image_size = 16;
    config.tokenizer.ch = 16;
    config.tokenizer.ch_mult = vec![1, 1, 2];
    config.tokenizer.num_res_blocks = 1;
    config.tokenizer.embed_dim = 4;
    config.tokenizer.norm_groups = 4;
    config.quantizer.codebook_size = 64;
    config.quantizer.steps = 4;
    config.generator.depth = 2;
    config.generator.width = Some(48);
    config.generator.heads = Some(2);
    config.generator.pos_embed = 0.1;
    config
}

fn random(index: u64, shape: &[usize]) -> Result<Tensor> {
    normal(7, Purpose::Drawing, &[index], 0, shape, &Device::Cpu)?.squeeze(0)
}

/// Smooth images in [-1,1]: 2×2 pixels of noise, enlarged.
fn images(count: usize) -> Result<Tensor> {
    let indices: Vec<u64> = (0..count as u64).collect();
    let x = uniform(
        7,
        Purpose::Drawing,
        &indices,
        1,
        &[2, 1, 2, 1, 3],
        &Device::Cpu,
    )?;
    let x = x.broadcast_as((count, 2, 8, 2, 8, 3))?.contiguous()?;
    x.reshape((count, 16, 16, 3))?.affine(2.0, -1.0)
}

/// Moves parameters that start at zero away from it, so that they hide no other gradient.
fn move_from_zero(params: &Params) -> Result<()> {
    for (i, (_, var)) in params.iter().enumerate() {
        if var.abs()?.max_all()?.to_scalar::<f32>()? == 0.0 {
            var.set(&(random(100 + i as u64, var.dims())? * 0.1)?)?;
        }
    }
    Ok(())
}

/// The gradients by the tape, after checking that they equal those of candle's own backward.
fn by_tape_and_graph(tape: Tape, loss: Tensor, params: &Params) -> Result<GradStore> {
    let by_graph = loss.backward()?;
    let by_tape = tape.backward(loss)?;
    let whole = norm(params.iter().filter_map(|(_, var)| by_graph.get(var)))?;
    for (name, var) in params.iter() {
        let [found, expected] = [&by_tape, &by_graph].map(|store| store.get(var));
        let (Some(found), Some(expected)) = (found, expected) else {
            panic!("no gradient for {name}");
        };
        let difference = norm([&(found - expected)?])?;
        let scale = norm([expected])?.max(1e-6 * whole);
        assert!(
            difference < 1e-4 * scale,
            "{name}: {difference:.1e} of {scale:.1e}"
        );
    }
    Ok(by_tape)
}

fn norm<'a>(grads: impl IntoIterator<Item = &'a Tensor>) -> Result<f64> {
    global_norm(grads)?.to_scalar()
}

/// Asserts that every gradient exists and is finite, and that all except those whose name ends in
/// one of `zero` are above rounding error.
fn assert_all_reached(params: &Params, grads: &GradStore, zero: &[&str]) -> Result<()> {
    let mut norms = Vec::new();
    for (name, var) in params.iter() {
        let grad = grads
            .get(var)
            .unwrap_or_else(|| panic!("no gradient for {name}"));
        norms.push((name, norm([grad])?));
    }
    let whole = norms.iter().map(|(_, n)| n * n).sum::<f64>().sqrt();
    assert!(whole.is_finite());
    for (name, norm) in norms {
        let reached = norm > 1e-6 * whole;
        let expected = !zero.iter().any(|end| name.ends_with(end));
        assert_eq!(
            reached, expected,
            "gradient of {name}: {norm:.1e} of {whole:.1e}"
        );
    }
    Ok(())
}

fn tokenizer_loss(tokenizer: &Tokenizer, x: &Tensor, noise: &Noise) -> Result<(Tensor, Tensor)> {
    let v = tokenizer.encode(x)?;
    let quantized = tokenizer.quantizer.quantize(&v, noise)?;
    let last = quantized.sums.get(tokenizer.quantizer.steps())?;
    let image = tokenizer.decode(&straight_through(&v, &last)?)?;
    let error = losses::mean_squared_error(&image, x)?;
    let loss = add(&error, &tokenizer.quantizer.loss(&v, &quantized)?)?;
    Ok((loss, error))
}

fn generator_loss(
    generator: &Generator,
    examples: &Examples,
    labels: &Tensor,
    t: &Tensor,
) -> Result<Tensor> {
    let condition = generator.condition(labels, t)?;
    let logits = generator.forward(&examples.noise, &examples.sum, &condition)?;
    let codes = examples.codes.flatten_all()?;
    let logits = arrange::reshape(&logits, ((), logits.dim(2)?))?;
    arrange::mean(&cross_entropy(&logits, &codes)?.loss)
}

#[test]
fn a_gradient_reaches_every_parameter_of_the_tokenizer() -> Result<()> {
    let scope = Scope::init(1, &Device::Cpu);
    let tokenizer = Tokenizer::new(&config(), &scope)?;
    let params = scope.finish();
    move_from_zero(&params)?;
    let noise = Noise::Drawn {
        seed: 1,
        indices: &[0, 1],
    };
    let tape = Tape::start();
    let (loss, _) = tokenizer_loss(&tokenizer, &images(2)?, &noise)?;
    // A key's bias adds the same value to all scores of a query, so softmax cancels it.
    let grads = by_tape_and_graph(tape, loss, &params)?;
    assert_all_reached(&params, &grads, &[".k.bias"])
}

#[test]
fn a_gradient_reaches_every_parameter_of_the_discriminator() -> Result<()> {
    let (scope, buffers) = (Scope::init(1, &Device::Cpu), Scope::init(1, &Device::Cpu));
    let discriminator = Discriminator::new(8, 2, &scope, &buffers)?;
    let params = scope.finish();
    move_from_zero(&params)?;
    let tape = Tape::start();
    let (real, _) = discriminator.forward(&images(2)?)?;
    let (fake, _) = discriminator.forward(&random(9, &[2, 16, 16, 3])?)?;
    // Scaled so that some logits are beyond the hinge's margin; within it, the two halves of the
    // last bias's gradient cancel.
    let real = plain([&real], |[real]| real * 30.0)?;
    let loss = losses::hinge_discriminator(&real, &fake)?;
    let grads = by_tape_and_graph(tape, loss, &params)?;
    assert_all_reached(&params, &grads, &[])
}

#[test]
fn a_gradient_reaches_every_parameter_of_the_generator() -> Result<()> {
    let scope = Scope::init(1, &Device::Cpu);
    let generator = Generator::new(&config(), CLASSES, &scope)?;
    let params = scope.finish();
    move_from_zero(&params)?;
    let examples = Examples {
        noise: random(1, &[2, 4, 4, 4])?,
        sum: random(2, &[2, 4, 4, 4])?,
        codes: Tensor::arange(0u32, 32, &Device::Cpu)?.reshape((2, 4, 4))?,
    };
    let (labels, t) = (
        Tensor::new(&[0u32, 3], &Device::Cpu)?,
        Tensor::new(&[1u32, 4], &Device::Cpu)?,
    );
    let tape = Tape::start();
    let loss = generator_loss(&generator, &examples, &labels, &t)?;
    let grads = by_tape_and_graph(tape, loss, &params)?;
    assert_all_reached(&params, &grads, &[])?;

    // Labels without examples get no gradient.
    let rows = grads
        .get(params.get("y_embedder.weight").expect("it is there"))
        .expect("reached");
    let used = rows.abs()?.sum(1)?.gt(0f32)?.to_vec1::<u8>()?;
    assert_eq!(used, [1, 0, 0, 1]);
    Ok(())
}

/// Adam on all of `params`.
struct Optimizer {
    params: Params,
    m: Params,
    v: Params,
    done: u64,
}

impl Optimizer {
    fn new(params: Params) -> Result<Self> {
        let (m, v) = (params.zeros_like()?, params.zeros_like()?);
        Ok(Self {
            params,
            m,
            v,
            done: 0,
        })
    }

    fn step(&mut self, loss: &Tensor, lr: f64) -> Result<()> {
        self.done += 1;
        let grads = loss.backward()?;
        let step = AdamStep {
            lr,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.0,
            step: self.done,
            grad_scale: 1.0,
            ema_decay: None,
        };
        for (name, var) in self.params.iter() {
            let [m, v] = [&self.m, &self.v].map(|p| p.get(name).expect("the same names"));
            adam_step(var, grads.get(var).expect("reached"), m, v, None, &step)?;
        }
        Ok(())
    }
}

#[test]
fn four_images_are_learned_by_heart_by_both_stages() -> Result<()> {
    let (config, x) = (config(), images(4)?);
    let (tokenizer, error) = learn_to_reconstruct(&config, &x)?;
    assert!(
        error < 0.01,
        "mean squared error {error}, of 0.36 at the start"
    );
    let entropy = learn_to_predict(&config, &tokenizer, &x)?;
    assert!(
        entropy < 0.01,
        "cross-entropy {entropy}, of ln 64 = 4.16 at the start"
    );
    Ok(())
}

/// Fresh noise in every step; returns the mean error of the last ten.
fn learn_to_reconstruct(config: &Config, x: &Tensor) -> Result<(Tokenizer, f32)> {
    const STEPS: u64 = 200;
    let scope = Scope::init(1, &Device::Cpu);
    let tokenizer = Tokenizer::new(config, &scope)?;
    let mut optimizer = Optimizer::new(scope.finish())?;
    let mut errors = Vec::new();
    for n in 0..STEPS {
        let indices = [0, 1, 2, 3].map(|i| 4 * n + i);
        let noise = Noise::Drawn {
            seed: 1,
            indices: &indices,
        };
        let (loss, error) = tokenizer_loss(&tokenizer, x, &noise)?;
        optimizer.step(&loss, 2e-3 * (1.0 - n as f64 / STEPS as f64))?;
        errors.push(error.to_scalar::<f32>()?);
    }
    Ok((
        tokenizer,
        errors[errors.len() - 10..].iter().sum::<f32>() / 10.0,
    ))
}

/// One example per image, each with its own step and label; returns the last cross-entropy.
fn learn_to_predict(config: &Config, tokenizer: &Tokenizer, x: &Tensor) -> Result<f32> {
    let scope = Scope::init(2, &Device::Cpu);
    let generator = Generator::new(config, CLASSES, &scope)?;
    let mut optimizer = Optimizer::new(scope.finish())?;
    let (v, t) = (tokenizer.encode(x)?, [1, 2, 3, 4]);
    let noise = Noise::Drawn {
        seed: 1,
        indices: &[0, 1, 2, 3],
    };
    let examples = tokenizer.quantizer.quantize_until(&v, &noise, &t)?;
    let (labels, t) = (
        Tensor::new(&[0u32, 1, 2, 3], &Device::Cpu)?,
        Tensor::new(&t, &Device::Cpu)?,
    );
    let mut last = f32::INFINITY;
    for _ in 0..60 {
        let loss = generator_loss(&generator, &examples, &labels, &t)?;
        optimizer.step(&loss, 3e-3)?;
        last = loss.to_scalar::<f32>()?;
    }
    Ok(last)
}
