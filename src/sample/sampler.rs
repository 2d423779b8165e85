//! Sampling (Algorithm 2): from labels to z'_T, the codes of one step after the other, with
//! classifier-free guidance.
//!
//! z'_0 = 0; for t = 1..T: ε_t ~ N(0,1), v̂ = f(ε_t, y, t, z'_{t−1}), guided by λ_t; ĉ_t chosen
//! from v̂ (Eq. 8, see [`choose`](super::choose)); z'_t = z'_{t−1} + v'(ĉ_t). The image is D(z'_T).
//! Labels u32 [B]; ε_t and z'_t [B,h,w,d]; v̂ [B,N,K]; images [B,H,W,3].

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::choose::choose;
use super::image::not_finite;
use super::options::SampleOptions;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::model::generator::{Generator, Modulation};
use crate::model::tokenizer::Tokenizer;
use crate::ops::{self, Noise, finite};
use crate::rng::{Purpose, uniform};

/// Number of images decoded at a time on a GPU: the decoder's activations are many times the size
/// of the latents.
pub(super) const DECODED_AT_ONCE: usize = 64;

/// The source of a batch's random numbers.
#[derive(Debug, Clone, Copy)]
pub enum Draws<'a> {
    /// From a seed and each sample's number, so that they do not depend on the batch.
    Seeded { seed: u64, indices: &'a [u64] },
    /// The same with a seed of each sample's own.
    Each {
        seeds: &'a [u64],
        indices: &'a [u64],
    },
    /// ε [T,B,h,w,d] and uniforms in (0,1) [T,B,N,K], to compare with other implementations.
    Given {
        noise: &'a Tensor,
        uniform: &'a Tensor,
    },
}

impl Draws<'_> {
    /// ε_t [B,h,w,d].
    fn noise(&self, t: usize, shape: [usize; 4], device: &Device) -> candle_core::Result<Tensor> {
        let [_, h, w, d] = shape;
        match *self {
            Draws::Seeded { seed, indices } => {
                Noise::Drawn { seed, indices }.step(t, shape, device)
            }
            Draws::Each { seeds, indices } => each(seeds, indices, |seed, indices| {
                Noise::Drawn { seed, indices }.step(t, [1, h, w, d], device)
            }),
            Draws::Given { noise, .. } => Noise::Given(noise).step(t, shape, device),
        }
    }

    /// For some images: [B,N,K].
    fn uniform(
        &self,
        t: usize,
        images: Range<usize>,
        (b, n, k): (usize, usize, usize),
    ) -> candle_core::Result<Tensor> {
        match *self {
            Draws::Seeded { seed, indices } => {
                let (purpose, indices) = (Purpose::Gumbel, &indices[images]);
                uniform(seed, purpose, indices, t as u32, &[n, k], &Device::Cpu)
            }
            Draws::Each { seeds, indices } => {
                let (seeds, indices) = (&seeds[images.clone()], &indices[images]);
                each(seeds, indices, |seed, index| {
                    let purpose = Purpose::Gumbel;
                    uniform(seed, purpose, index, t as u32, &[n, k], &Device::Cpu)
                })
            }
            Draws::Given { uniform, .. } => uniform.get(t - 1)?.narrow(0, images.start, b),
        }
    }
}

/// What `f` gives for the samples one by one, [1,…] each: [B,…].
fn each(
    seeds: &[u64],
    indices: &[u64],
    f: impl Fn(u64, &[u64]) -> candle_core::Result<Tensor>,
) -> candle_core::Result<Tensor> {
    let each = seeds.iter().zip(indices.chunks(1));
    let each: candle_core::Result<Vec<_>> = each.map(|(seed, index)| f(*seed, index)).collect();
    Tensor::cat(&each?, 0)
}

/// A trained generator with the tokenizer whose codes it predicts.
pub struct Sampler<'a> {
    generator: &'a Generator,
    tokenizer: &'a Tokenizer,
    /// h = w
    side: usize,
    /// Also the label of the empty condition.
    classes: usize,
    #[cfg(feature = "cuda")]
    gpu: Option<super::gpu::GpuSampler>,
}

impl<'a> Sampler<'a> {
    pub fn new(
        generator: &'a Generator,
        tokenizer: &'a Tokenizer,
        config: &Config,
        classes: usize,
    ) -> Self {
        Self {
            generator,
            tokenizer,
            side: config.grid(),
            classes,
            #[cfg(feature = "cuda")]
            gpu: None,
        }
    }

    /// The same with the GPU's bf16 kernels, if the tokenizer is on a GPU and the kernels support
    /// the model's sizes; `parameters` are the generator's.
    #[cfg(feature = "cuda")]
    pub fn on_gpu(
        mut self,
        config: &Config,
        parameters: &std::collections::BTreeMap<String, Tensor>,
    ) -> Result<Self> {
        use super::gpu::GpuSampler;
        use crate::ops::cuda::Gpu;
        let quantizer = &self.tokenizer.quantizer;
        if let Device::Cuda(device) = quantizer.codebook.embedding.device() {
            match GpuSampler::serves(config, self.classes) {
                Ok(()) => {
                    let (gpu, classes) = (Gpu::of(device)?, self.classes);
                    let sampler = GpuSampler::new(gpu, config, classes, parameters, quantizer)?;
                    self.gpu = Some(sampler);
                }
                Err(e) => tracing::warn!("sampling with plain tensor operations in f32: {e}"),
            }
        }
        Ok(self)
    }

    /// z'_1 .. z'_T, each [B,h,w,d].
    ///
    /// Errors: a label outside the classes; random numbers for another batch size; logits that are
    /// not finite.
    pub fn latents(
        &self,
        labels: &[u32],
        draws: &Draws,
        options: &SampleOptions,
    ) -> Result<Vec<Tensor>> {
        self.check_labels(labels)?;
        #[cfg(feature = "cuda")]
        if let (Some(gpu), Draws::Seeded { seed, indices }) = (&self.gpu, draws) {
            return Ok(gpu.latents(labels, *seed, indices, options)?);
        }
        let steps = self.steps();
        let mut sum = self.start(labels.len())?;
        let mut sums = Vec::with_capacity(steps);
        for t in 1..=steps {
            sum = self.step(t, &sum, labels, draws, options)?;
            sums.push(sum.clone());
        }
        Ok(sums)
    }

    /// z'_0 [B,h,w,d] of `b` images, and weights that are ready for the steps.
    pub(super) fn start(&self, b: usize) -> Result<Tensor> {
        let embedding = &self.tokenizer.quantizer.codebook.embedding;
        if embedding.device().is_cpu() {
            self.generator.pack()?;
        }
        let shape = (b, self.side, self.side, embedding.dim(1)?);
        Ok(Tensor::zeros(shape, DType::F32, embedding.device())?)
    }

    /// z'_t from z'_{t−1}, with plain tensor operations.
    pub(super) fn step(
        &self,
        t: usize,
        sum: &Tensor,
        labels: &[u32],
        draws: &Draws,
        options: &SampleOptions,
    ) -> Result<Tensor> {
        let (b, h, w, d) = sum.dims4()?;
        let (device, quantizer) = (sum.device(), &self.tokenizer.quantizer);
        let noise = draws.noise(t, [b, h, w, d], device)?;
        let choice = options.choice(t, quantizer.steps());
        let conditions = self.conditions(labels, t, choice.lambda != 0.0)?;
        side_by_side(b, device, b, |images| {
            let of = |x: &Tensor| x.narrow(0, images.start, images.len());
            let (noise, sum) = (of(&noise)?, of(sum)?);
            let modulation = conditions.of(images.clone())?;
            // [B,N,K]
            let logits = logits(self.generator, &noise, &sum, &modulation, choice.lambda)?;
            let uniform = match options.gumbel {
                true => Some(draws.uniform(t, images.clone(), logits.dims3()?)?),
                false => None,
            };
            let codes = choose(&logits, uniform.as_ref(), &choice.guided())
                .or_else(|error| Err(named(&logits, draws, t, images.start, error)?))?; // [B,N]
            let codes = codes.reshape(&noise.dims()[..3])?;
            Ok((sum + quantizer.lookup(&codes)?)?)
        })
    }

    /// z'_T [B,h,w,d], as [`Sampler::latents`].
    pub fn latent(&self, labels: &[u32], draws: &Draws, options: &SampleOptions) -> Result<Tensor> {
        self.check_labels(labels)?;
        #[cfg(feature = "cuda")]
        if let (Some(gpu), Draws::Seeded { seed, indices }) = (&self.gpu, draws) {
            return Ok(gpu.latent(labels, *seed, indices, options)?);
        }
        match self.latents(labels, draws, options)?.pop() {
            Some(z) => Ok(z),
            None => anyhow::bail!("a model of no steps samples nothing"),
        }
    }

    /// The finished images [B,H,W,3].
    pub fn images(&self, labels: &[u32], draws: &Draws, options: &SampleOptions) -> Result<Tensor> {
        decode(self.tokenizer, &self.latent(labels, draws, options)?)
    }

    pub(super) fn steps(&self) -> usize {
        self.tokenizer.quantizer.steps()
    }

    #[cfg(feature = "cuda")]
    pub(super) fn gpu(&self) -> Option<&super::gpu::GpuSampler> {
        self.gpu.as_ref()
    }

    pub(super) fn check_labels(&self, labels: &[u32]) -> Result<()> {
        match labels.iter().find(|&&l| l as usize >= self.classes) {
            Some(label) => anyhow::bail!(
                "label {label} is out of range: there are {} classes",
                self.classes
            ),
            None => Ok(()),
        }
    }

    /// The modulations of step t, computed once per distinct label.
    fn conditions(&self, labels: &[u32], t: usize, guided: bool) -> Result<Conditions> {
        let device = self.tokenizer.quantizer.codebook.embedding.device();
        let distinct: BTreeSet<u32> = labels.iter().copied().collect();
        let mut each: Vec<u32> = distinct.iter().copied().collect();
        if guided {
            each.push(self.classes as u32); // the empty condition
        }
        let t = Tensor::full(t as u32, each.len(), device)?;
        let rows = if guided { 2 } else { 1 };
        let empty = distinct.len() as u32;
        let first: BTreeMap<u32, u32> = distinct.into_iter().zip((0..).step_by(rows)).collect();
        let condition = self.generator.condition(&Tensor::new(each, device)?, &t)?;
        let mut modulation = self.generator.modulation(&condition)?;
        if guided {
            // A label's row and the empty condition's side by side: no image copies them.
            let pairs: Vec<u32> = (0..empty).flat_map(|row| [row, empty]).collect();
            modulation = modulation.rows(&pairs)?;
        }
        Ok(Conditions {
            modulation,
            first: labels.iter().map(|label| first[label]).collect(),
            rows: rows as u32,
        })
    }
}

/// The error of step `t`'s choice for the images from `first` on, with the number of the image
/// whose logits are not finite.
fn named(
    logits: &Tensor,
    draws: &Draws,
    t: usize,
    first: usize,
    error: candle_core::Error,
) -> Result<Error> {
    let (Draws::Seeded { indices, .. } | Draws::Each { indices, .. }) = draws else {
        return Ok(error.into());
    };
    let Some(row) = finite::first_bad_row(logits)? else {
        return Ok(error.into());
    };
    let image = format!("image {}", indices[first + row]);
    Ok(not_finite(
        &image,
        &format!("the generator's logits of step {t}"),
    ))
}

/// The modulations of a batch's labels: one row per label, or two with the empty condition's.
struct Conditions {
    modulation: Modulation,
    /// The first row of each image's label.
    first: Vec<u32>,
    rows: u32,
}

impl Conditions {
    /// The rows of some images, followed by as many rows of the empty condition.
    fn of(&self, images: Range<usize>) -> candle_core::Result<Modulation> {
        let first = &self.first[images];
        let numbers = (0..self.rows).flat_map(|row| first.iter().map(move |first| first + row));
        self.modulation.rows(&numbers.collect::<Vec<_>>())
    }
}

/// v̂ [B,N,K] from ε_t and z'_{t−1}, [B,h,w,d] each; if λ is not 0, `modulation` also has the rows
/// of the unconditional half.
///
/// The head is linear, so c + λ(c − u) is applied before it, which halves its work.
fn logits(
    generator: &Generator,
    noise: &Tensor,
    sum: &Tensor,
    modulation: &Modulation,
    lambda: f32,
) -> candle_core::Result<Tensor> {
    let x = generator.embed(noise, sum)?;
    if lambda == 0.0 {
        return generator.head(&generator.transform(&x, modulation)?);
    }
    // Both halves in one batch: an image's bits do not depend on the rest of its batch.
    let x = generator.transform(&x.twice()?, modulation)?;
    let halves = x.chunk(2, 0)?;
    let (c, u) = (&halves[0], &halves[1]);
    generator.head(&(c + ((c - u)? * f64::from(lambda))?)?)
}

/// D(z) for z [B,h,w,d].
pub fn decode(tokenizer: &Tokenizer, z: &Tensor) -> Result<Tensor> {
    side_by_side(z.dim(0)?, z.device(), DECODED_AT_ONCE, |images| {
        Ok(tokenizer.decode(&z.narrow(0, images.start, images.len())?)?)
    })
}

/// Concatenates the results of `f` for `b` images. On a CPU, images are processed one by one, in
/// parallel: an image's data stays in its core's caches, and no thread waits for another. Elsewhere
/// `at_once` images are processed at a time.
fn side_by_side(
    b: usize,
    device: &Device,
    at_once: usize,
    f: impl Fn(Range<usize>) -> Result<Tensor> + Sync,
) -> Result<Tensor> {
    let parts = if device.is_cpu() {
        let every_thread_has_one = b >= rayon::current_num_threads();
        let one = |i| match every_thread_has_one {
            true => ops::serially(|| f(i..i + 1)),
            false => f(i..i + 1),
        };
        let images = (0..b).into_par_iter().with_max_len(1);
        // The error of the first image counts, whichever thread fails first.
        let results: Vec<_> = images.map(one).collect();
        results.into_iter().collect::<Result<Vec<_>>>()?
    } else {
        let starts = (0..b).step_by(at_once);
        starts
            .map(|i| f(i..b.min(i + at_once)))
            .collect::<Result<Vec<_>>>()?
    };
    Ok(Tensor::cat(&parts, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CfgSchedule;
    use crate::rng::normal;
    use crate::store::Scope;

    fn tiny() -> Config {
        let mut config = Config::default();
        config.data.image_size = 16;
        config.tokenizer.ch = 32;
        config.tokenizer.ch_mult = vec![1, 2];
        config.tokenizer.num_res_blocks = 1;
        config.tokenizer.embed_dim = 5;
        config.quantizer.codebook_size = 37;
        config.quantizer.steps = 3;
        config.generator.depth = 2;
        config.generator.width = Some(48);
        config.generator.heads = Some(3);
        config
    }

    /// Both models with random parameters; with their initial values, all logits would be zero.
    fn models(config: &Config, classes: usize) -> Result<(Generator, Tokenizer)> {
        let scope = Scope::init(5, &Device::Cpu);
        let generator = Generator::new(config, classes, &scope.push("generator"))?;
        let tokenizer = Tokenizer::new(config, &scope.push("tokenizer"))?;
        for (i, (_, var)) in scope.finish().iter().enumerate() {
            let random = normal(9, Purpose::Init, &[i as u64], 0, var.dims(), var.device())?;
            var.set(&(random.squeeze(0)? * 0.2)?)?;
        }
        Ok((generator, tokenizer))
    }

    fn options() -> SampleOptions {
        SampleOptions {
            cfg: 1.5,
            cfg_schedule: CfgSchedule::Linear,
            temperature: 0.9,
            gumbel: true,
            top_k: Some(30),
            top_p: Some(0.98),
        }
    }

    fn bits(images: &Tensor) -> Result<Vec<u32>> {
        let values = images.flatten_all()?.to_vec1::<f32>()?;
        Ok(values.into_iter().map(f32::to_bits).collect())
    }

    #[test]
    fn a_sample_has_the_same_bits_in_every_batch_and_on_every_number_of_threads() -> Result<()> {
        const N: u64 = 64;
        let config = tiny();
        let (generator, tokenizer) = models(&config, 4)?;
        let sampler = Sampler::new(&generator, &tokenizer, &config, 4);
        let sample = |batch: u64| -> Result<Vec<u32>> {
            let mut all = Vec::new();
            for start in (0..N).step_by(batch as usize) {
                let indices: Vec<u64> = (start..(start + batch).min(N)).collect();
                let labels: Vec<u32> = indices.iter().map(|i| (i % 4) as u32).collect();
                let draws = Draws::Seeded {
                    seed: 11,
                    indices: &indices,
                };
                all.extend(bits(&sampler.images(&labels, &draws, &options())?)?);
            }
            Ok(all)
        };
        let expected = sample(64)?;
        assert_eq!(expected.len(), 64 * 16 * 16 * 3);
        assert_ne!(
            expected[..768],
            expected[768 * 4..768 * 5],
            "one class, two samples"
        );
        for (batch, threads) in [(1, 2), (2, 1), (7, 2), (64, 1)] {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()?;
            let found = pool.install(|| sample(batch))?;
            assert!(found == expected, "batch {batch}, {threads} threads");
        }
        Ok(())
    }

    #[test]
    fn a_batch_of_several_seeds_has_each_samples_own_bits_also_when_some_leave() -> Result<()> {
        use crate::sample::{Sample, Steps};
        let config = tiny();
        let (generator, tokenizer) = models(&config, 4)?;
        let sampler = Sampler::new(&generator, &tokenizer, &config, 4);
        let sample = |label, seed, number| Sample {
            label,
            seed,
            number,
        };
        let mut batch = vec![sample(3, 11, 0), sample(1, 8, 5), sample(3, 8, 0)];
        let alone = |s: &Sample, t: usize| -> Result<Vec<u32>> {
            let draws = Draws::Seeded {
                seed: s.seed,
                indices: &[s.number],
            };
            bits(&sampler.latents(&[s.label], &draws, &options())?[t - 1])
        };
        let mut steps = Steps::new(&sampler, batch.clone(), &options())?;
        for t in 1..=3 {
            let (found, sum) = steps.advance()?.expect("a step");
            assert_eq!((found, sum.dim(0)?), (t, batch.len()));
            for (i, sample) in batch.iter().enumerate() {
                assert!(bits(&sum.get(i)?)? == alone(sample, t)?, "{sample:?}, {t}");
            }
            if t == 1 {
                steps.keep(&[0, 2])?;
                batch.remove(1);
            }
        }
        assert!(steps.advance()?.is_none());
        assert!(steps.keep(&[]).is_err());
        Ok(())
    }

    #[test]
    fn the_steps_follow_algorithm_2() -> Result<()> {
        let config = tiny();
        let (generator, tokenizer) = models(&config, 4)?;
        let (b, n, k, d) = (2, 64, 37, 5);
        let noise =
            normal(1, Purpose::Noise, &[0], 0, &[3, b, 8, 8, d], &Device::Cpu)?.squeeze(0)?;
        let uniform =
            uniform(1, Purpose::Gumbel, &[0], 0, &[3, b, n, k], &Device::Cpu)?.squeeze(0)?;
        let draws = Draws::Given {
            noise: &noise,
            uniform: &uniform,
        };
        let options = SampleOptions {
            top_k: None,
            top_p: None,
            ..options()
        };
        let found =
            Sampler::new(&generator, &tokenizer, &config, 4).latents(&[3, 0], &draws, &options)?;
        // The same in plain tensors, one half after the other.
        let mut sum = Tensor::zeros((b, 8, 8, d), DType::F32, &Device::Cpu)?;
        for t in 1..=3u32 {
            let eps = noise.get(t as usize - 1)?;
            let logits = |labels: [u32; 2]| -> candle_core::Result<Tensor> {
                let condition = generator.condition(
                    &Tensor::new(&labels, &Device::Cpu)?,
                    &Tensor::new(&[t, t], &Device::Cpu)?,
                )?;
                generator.forward(&eps, &sum, &condition)
            };
            let (c, u) = (logits([3, 0])?, logits([4, 4])?);
            let guided = (&c + ((&c - &u)? * (1.5 * f64::from(t - 1) / 2.0))?)?;
            let gumbel = uniform.get(t as usize - 1)?.log()?.neg()?.log()?.neg()?;
            let codes = ((guided / 0.9)? + gumbel)?.argmax(2)?.reshape((b, 8, 8))?;
            sum = (sum + tokenizer.quantizer.lookup(&codes)?)?;
            let difference = (&sum - &found[t as usize - 1])?.abs()?.max_all()?;
            assert!(
                difference.to_scalar::<f32>()? < 1e-5,
                "t = {t}: {difference}"
            );
        }
        Ok(())
    }

    #[test]
    fn a_step_without_guidance_does_not_see_the_empty_condition() -> Result<()> {
        let options = SampleOptions {
            cfg: 3.0,
            ..options()
        };
        let lambdas = |steps| {
            (1..=steps)
                .map(|t| options.choice(t, steps).lambda)
                .collect::<Vec<_>>()
        };
        assert_eq!(lambdas(4), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(lambdas(1), [3.0]);
        Ok(())
    }

    #[test]
    fn a_label_that_is_no_class_is_refused() -> Result<()> {
        let config = tiny();
        let (generator, tokenizer) = models(&config, 4)?;
        let draws = Draws::Seeded {
            seed: 1,
            indices: &[0],
        };
        let error =
            Sampler::new(&generator, &tokenizer, &config, 4).latents(&[4], &draws, &options());
        assert!(error.unwrap_err().to_string().contains("label 4"));
        Ok(())
    }
}
