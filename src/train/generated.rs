//! Latents that a generator drew, for a decoder that is trained alone [ours]: the discriminator sees
//! their images beside the reconstructed ones, so that the decoder also learns to make what the
//! generator gives it look real. Nothing else is asked of these images: there is nothing that they
//! reconstruct.

use std::path::Path;

use candle_core::{DType, Device, Result as TensorResult, Tensor};

use crate::config::Config;
use crate::error::{Context, Result, usage};
use crate::sample::{Draws, Pretrained, SampleOptions};
use crate::telemetry::Progress;

/// The most by which two copies of a codebook differ, relative to its norm: one may have been
/// written with 8 bits a weight.
const ROUNDING: f64 = 0.02;

/// z'_T of generated images.
pub struct Generated {
    /// [N,h,w,d]
    latents: Tensor,
    /// Latents per image of a micro-batch.
    share: f64,
}

/// A generator of the codes that the decoder is trained on.
pub struct Source {
    model: Pretrained,
}

impl Source {
    /// Errors: no generator; one of other codes, as far as the configurations tell.
    pub fn open(path: &Path, config: &Config, device: &Device) -> Result<Self> {
        let model = Pretrained::open(Some(path), device)?;
        model.generator()?;
        match model.config.code_difference(config) {
            Some(section) => Err(of_other_codes(
                path,
                &format!("its [{section}] is another than this run's"),
            )),
            None => Ok(Self { model }),
        }
    }

    /// The SHA-256 of its weights.
    pub fn hash(&self) -> Result<String> {
        self.model.hash()
    }

    /// Errors: the generator draws from another codebook than `codebook` [K,d].
    pub fn check(&self, codebook: &Tensor) -> Result<()> {
        let own = &self.model.tokenizer.quantizer.codebook.embedding;
        if difference(own, codebook)? > ROUNDING {
            return Err(of_other_codes(&self.model.path, "it has another codebook"));
        }
        Ok(())
    }

    /// Draws `loss.generated_latents` latents with the settings of `[sample]`, of all classes in
    /// turn. They depend on the seed alone.
    pub fn draw(&self, config: &Config, seed: u64) -> Result<Generated> {
        let (sampler, options) = (self.model.sampler()?, SampleOptions::from(&config.sample));
        let classes = self.model.classes.len().max(1) as u64;
        let count = config.loss.generated_latents as u64;
        let numbers: Vec<u64> = (0..count).collect();
        let mut progress = Progress::new("latents", count, 0);
        let mut parts = Vec::new();
        for indices in numbers.chunks(config.sample.batch_size) {
            let labels: Vec<u32> = indices.iter().map(|i| (i % classes) as u32).collect();
            let draws = Draws::Seeded { seed, indices };
            parts.push(sampler.latent(&labels, &draws, &options)?);
            indices.iter().for_each(|_| progress.advance());
        }
        Ok(Generated {
            latents: Tensor::cat(&parts, 0)?,
            share: config.loss.generated_share,
        })
    }
}

impl Generated {
    /// The latents [G,h,w,d] that stand beside the micro-batch of these examples, others each time
    /// until all have been used.
    pub fn beside(&self, examples: &[u64]) -> TensorResult<Tensor> {
        let all = self.latents.dim(0)?;
        let images = examples.len();
        let count = ((images as f64 * self.share).ceil() as usize).clamp(1, all);
        let batch = examples.first().map_or(0, |first| first / images as u64);
        let start = (batch % (all / count) as u64) as usize * count;
        self.latents.narrow(0, start, count)
    }
}

fn of_other_codes(path: &Path, why: &str) -> crate::error::Error {
    usage(
        format!("{} draws other codes: {why}", path.display()),
        "--gen names a generator that was trained on the tokenizer of --init",
    )
}

/// ‖a − b‖ / ‖b‖, or infinity for different shapes.
fn difference(a: &Tensor, b: &Tensor) -> Result<f64> {
    if a.dims() != b.dims() {
        return Ok(f64::INFINITY);
    }
    let norm = |x: &Tensor| -> TensorResult<f64> {
        let x = x.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
        x.sqr()?.sum_all()?.to_scalar::<f64>().map(f64::sqrt)
    };
    let [a, b] = [a, b].map(|x| x.detach());
    Ok(norm(&(a - &b)?)? / norm(&b)?)
}

/// The generator that the configuration names, with its hash kept for resumed runs.
pub fn source(config: &Config, device: &Device) -> Result<Option<Source>> {
    let Some(path) = &config.loss.generator else {
        return Ok(None);
    };
    let source = Source::open(Path::new(path), config, device)
        .with_context(|| format!("loss.generator = {path:?}"))?;
    Ok(Some(source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micro_batches_take_all_latents_in_turn() -> Result<()> {
        let latents = Tensor::arange(0f32, 8.0, &Device::Cpu)?.reshape((8, 1, 1, 1))?;
        let generated = Generated {
            latents,
            share: 0.75,
        };
        let of = |first: u64| -> Result<Vec<f32>> {
            let examples: Vec<u64> = (first..first + 4).collect();
            Ok(generated.beside(&examples)?.flatten_all()?.to_vec1()?)
        };
        assert_eq!(of(0)?, [0.0, 1.0, 2.0]);
        assert_eq!(of(4)?, [3.0, 4.0, 5.0]);
        assert_eq!(of(8)?, [0.0, 1.0, 2.0]);
        Ok(())
    }

    #[test]
    fn copies_of_a_codebook_differ_by_rounding_only() -> Result<()> {
        let book = Tensor::new(&[[1f32, 2.0], [3.0, -4.0]], &Device::Cpu)?;
        assert_eq!(difference(&book, &book)?, 0.0);
        assert!(difference(&(&book * 1.01)?, &book)? < ROUNDING);
        assert!(difference(&book.neg()?, &book)? > 1.0);
        assert_eq!(difference(&book.narrow(0, 0, 1)?, &book)?, f64::INFINITY);
        Ok(())
    }
}
