//! The judge of the demo's samples: a small convolutional classifier trained on drawings.
//!
//! Four times conv3×3, BatchNorm, ReLU (24, 48, 96, 96 channels), three max-pools in between, the
//! mean over positions, ten logits. It is trained on blurred and noisy drawings, so that it judges
//! shapes and not the sharpness of edges.

use candle_core::{D, Device, Tensor};
use rdpm::config::{LrSchedule, TrainConfig};
use rdpm::data::Source;
use rdpm::data::shapes::{NAMES, SIZE, Shapes};
use rdpm::error::Result;
use rdpm::ops::{self, Activation, Padding};
use rdpm::rng::{Purpose, Stream};
use rdpm::store::{Init, Params, Scope};
use rdpm::train::grads::gradients;
use rdpm::train::lr::learning_rate;
use rdpm::train::optimizer::Optimizer;

const CHANNELS: [usize; 4] = [24, 48, 96, 96];
const PIXELS: usize = SIZE * SIZE;
const EPS: f64 = 1e-5;
const BATCH: usize = 64;
const STEPS: u64 = 400;
/// Momentum of the running statistics.
const MOMENTUM: f64 = 0.1;

/// Images [N,32,32,3] in [-1,1], in memory order, and their classes.
pub struct Pictures {
    pub values: Vec<f32>,
    pub labels: Vec<u32>,
}

impl Pictures {
    pub fn from_bytes(bytes: &[u8], labels: Vec<u32>) -> Self {
        let values = bytes.iter().map(|&b| f32::from(b) / 127.5 - 1.0).collect();
        Self { values, labels }
    }

    /// `count` drawings from `seed`.
    pub fn drawn(seed: u64, count: usize) -> Result<Self> {
        let shapes = Shapes::new(seed, count);
        let (mut bytes, mut labels) = (Vec::new(), Vec::new());
        for i in 0..count {
            let example = shapes.read(i)?;
            bytes.extend(example.image.into_raw());
            labels.push(example.label);
        }
        Ok(Self::from_bytes(&bytes, labels))
    }

    fn len(&self) -> usize {
        self.labels.len()
    }
}

struct Layer {
    conv: (Tensor, Tensor),
    norm: (Tensor, Tensor),
    /// Running mean and variance.
    statistics: (Tensor, Tensor),
}

impl Layer {
    fn new(input: usize, output: usize, scope: &Scope) -> Result<Self> {
        let bound = 1.0 / (9.0 * input as f64).sqrt();
        let uniform = Init::Uniform { bound };
        let one = Tensor::ones(output, candle_core::DType::F32, &Device::Cpu)?;
        Ok(Self {
            conv: (
                scope.get("conv.weight", (output, input, 3, 3), uniform)?,
                scope.get("conv.bias", output, uniform)?,
            ),
            norm: (
                scope.get("norm.weight", output, Init::Ones)?,
                scope.get("norm.bias", output, Init::Zeros)?,
            ),
            statistics: (one.zeros_like()?, one),
        })
    }

    fn convolve(&self, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = &self.conv;
        Ok(ops::conv2d(x, weight, Some(bias), 1, Padding::same(1))?)
    }

    fn train(&mut self, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = &self.norm;
        let x = self.convolve(x)?;
        let (y, mean, variance) = ops::batch_norm(&x, weight, bias, EPS, Activation::None)?;
        let follow = |running: &Tensor, batch: &Tensor| -> Result<Tensor> {
            Ok(((running * (1.0 - MOMENTUM))? + (batch * MOMENTUM)?)?.detach())
        };
        self.statistics = (
            follow(&self.statistics.0, &mean)?,
            follow(&self.statistics.1, &variance)?,
        );
        Ok(ops::relu(&y)?)
    }

    fn judge(&self, x: &Tensor) -> Result<Tensor> {
        let ((mean, variance), (weight, bias)) = (&self.statistics, &self.norm);
        let x = self.convolve(x)?;
        let y = ops::batch_norm_inference(&x, mean, variance, weight, bias, EPS, Activation::None)?;
        Ok(ops::relu(&y)?)
    }
}

pub struct Judge {
    layers: Vec<Layer>,
    head: (Tensor, Tensor),
}

impl Judge {
    /// Trained on 6,000 drawings, for 400 steps of 64.
    pub fn trained(seed: u64) -> Result<Self> {
        let scope = Scope::init(seed, &Device::Cpu);
        let mut input = 3;
        let mut layers = Vec::new();
        for (i, output) in CHANNELS.into_iter().enumerate() {
            layers.push(Layer::new(input, output, &scope.push(i))?);
            input = output;
        }
        let bound = 1.0 / (input as f64).sqrt();
        let uniform = Init::Uniform { bound };
        let head = (
            scope.get("head.weight", (NAMES.len(), input), uniform)?,
            scope.get("head.bias", NAMES.len(), uniform)?,
        );
        let mut judge = Self { layers, head };
        judge.train(scope.finish(), &Pictures::drawn(777, 6000)?, seed)?;
        Ok(judge)
    }

    fn train(&mut self, params: Params, pictures: &Pictures, seed: u64) -> Result<()> {
        let config = TrainConfig {
            lr: 3e-3,
            lr_schedule: LrSchedule::Cosine,
            warmup_steps: 30,
            betas: (0.9, 0.999),
            weight_decay: 0.01,
            ..TrainConfig::generator()
        };
        let mut optimizer = Optimizer::new(params, &config, false)?;
        for step in 0..STEPS {
            let mut draws = Stream::new(seed, Purpose::Shuffle, step, 0).draws();
            let chosen: Vec<usize> = (0..BATCH)
                .map(|_| draws.below(pictures.len() as u32) as usize)
                .collect();
            let mut values = Vec::with_capacity(BATCH * PIXELS * 3);
            for (&i, n) in chosen.iter().zip(step * BATCH as u64..) {
                let picture = &pictures.values[i * PIXELS * 3..(i + 1) * PIXELS * 3];
                values.extend(blurred_and_noisy(picture, seed, n));
            }
            let mut x = Tensor::from_vec(values, (BATCH, SIZE, SIZE, 3), &Device::Cpu)?;
            for (i, layer) in self.layers.iter_mut().enumerate() {
                x = pooled(layer.train(&x)?, i)?;
            }
            let labels: Vec<u32> = chosen.iter().map(|&i| pictures.labels[i]).collect();
            let labels = Tensor::from_vec(labels, BATCH, &Device::Cpu)?;
            let loss = ops::cross_entropy(&self.logits(&x)?, &labels)?
                .loss
                .mean_all()?;
            let gradients = gradients(loss.backward()?, optimizer.trained())?;
            optimizer.update(&gradients, learning_rate(&config, step, STEPS), 1.0)?;
        }
        Ok(())
    }

    /// Whether each image is classified as its label.
    pub fn agrees(&self, pictures: &Pictures) -> Result<Vec<bool>> {
        let mut out = Vec::with_capacity(pictures.len());
        for (values, labels) in pictures
            .values
            .chunks(200 * PIXELS * 3)
            .zip(pictures.labels.chunks(200))
        {
            let mut x = Tensor::from_slice(values, (labels.len(), SIZE, SIZE, 3), &Device::Cpu)?;
            for (i, layer) in self.layers.iter().enumerate() {
                x = pooled(layer.judge(&x)?, i)?;
            }
            let found = self.logits(&x)?.argmax(D::Minus1)?.to_vec1::<u32>()?;
            out.extend(
                found
                    .iter()
                    .zip(labels)
                    .map(|(found, label)| found == label),
            );
        }
        Ok(out)
    }

    fn logits(&self, x: &Tensor) -> Result<Tensor> {
        let mean = x.flatten(1, 2)?.mean(1)?;
        Ok(ops::linear(&mean, &self.head.0, Some(&self.head.1))?)
    }
}

/// The map is halved after each layer except the last.
fn pooled(x: Tensor, layer: usize) -> Result<Tensor> {
    if layer + 1 == CHANNELS.len() {
        return Ok(x);
    }
    Ok(ops::max_pool2d(&x, 2, 2, Padding::same(0))?)
}

/// The image [32,32,3] with random amounts of blur (3×3), pixel noise and smooth noise (16×16,
/// bilinear).
fn blurred_and_noisy(picture: &[f32], seed: u64, n: u64) -> Vec<f32> {
    const COARSE: usize = SIZE / 2;
    let mut amount = [0f32; 3];
    Stream::new(seed, Purpose::Augment, n, 0).fill_uniform(&mut amount);
    let mut fine = vec![0f32; PIXELS * 3];
    Stream::new(seed, Purpose::Augment, n, 1).fill_normal(&mut fine);
    let mut coarse = vec![0f32; COARSE * COARSE * 3];
    Stream::new(seed, Purpose::Augment, n, 2).fill_normal(&mut coarse);

    // Edges are replicated.
    let at = |y: isize, x: isize, c: usize| {
        let inside = |v: isize| v.clamp(0, SIZE as isize - 1) as usize;
        picture[(inside(y) * SIZE + inside(x)) * 3 + c]
    };
    // Half a coarse step to either side: weights 3/4 and 1/4.
    let pair = |v: usize| {
        let (near, other) = (
            v / 2,
            if v.is_multiple_of(2) {
                (v / 2).saturating_sub(1)
            } else {
                v / 2 + 1
            },
        );
        [(near, 0.75f32), (other.min(COARSE - 1), 0.25)]
    };
    let mut out = Vec::with_capacity(PIXELS * 3);
    for (y, x) in (0..PIXELS).map(|i| (i / SIZE, i % SIZE)) {
        for c in 0..3 {
            let sharp = at(y as isize, x as isize, c);
            let mut blurred = 0.0;
            for (dy, dx) in (0..9).map(|k| (k / 3 - 1, k % 3 - 1)) {
                blurred += at(y as isize + dy, x as isize + dx, c) / 9.0;
            }
            let mut smooth = 0.0;
            for (cy, wy) in pair(y) {
                for (cx, wx) in pair(x) {
                    smooth += wy * wx * coarse[(cy * COARSE + cx) * 3 + c];
                }
            }
            let noise = 0.15 * amount[1] * fine[out.len()] + 0.2 * amount[2] * smooth;
            out.push(sharp + amount[0] * (blurred - sharp) + noise);
        }
    }
    out
}
