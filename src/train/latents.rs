//! Where the generator's latents v come from: images encoded by the frozen tokenizer during
//! training, or a cache.
//!
//! Both give example n the same image and the same flip, provided that no bad image was left out of
//! the cache; the cache's latents are rounded to bf16.

use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use tracing::info_span;

use crate::data::latent_cache::{CacheMeta, LatentCache};
use crate::data::latent_loader::LatentLoader;
use crate::data::{Loader, LoaderOptions, Source};
use crate::error::{Context, Result, hinted};
use crate::interrupt::Interrupt;
use crate::model::tokenizer::Tokenizer;
use crate::ops::finite;
use crate::sample::not_finite;
use crate::telemetry::Progress;

/// Micro-batches whose latents a GPU has made before the host looks at them, for which it waits.
const CHECKED_TOGETHER: usize = 32;

/// A micro-batch of the generator.
pub struct LatentBatch {
    /// [B,h,w,d] f32
    pub v: Tensor,
    pub labels: Vec<u32>,
    /// The examples' numbers.
    pub indices: Vec<u64>,
}

pub enum Latents {
    Encoded(Box<Encoded>),
    Cached(Box<Cached>),
}

impl Latents {
    /// The next micro-batch, on `device`.
    ///
    /// Errors: an image's latents are not finite; on a GPU, also those of an earlier micro-batch.
    pub fn next(&mut self, tokenizer: &Tokenizer, device: &Device) -> Result<LatentBatch> {
        let wait = info_span!("data wait");
        match self {
            Latents::Encoded(encoded) => encoded.next(tokenizer),
            Latents::Cached(cached) => wait.in_scope(|| cached.next(device)),
        }
    }

    /// Looks at the micro-batches that [`Latents::next`] gave and has not looked at; waits for the
    /// GPU.
    ///
    /// Errors: as of [`Latents::next`].
    #[cfg(feature = "cuda")]
    pub fn check(&mut self) -> Result<()> {
        match self {
            Latents::Encoded(encoded) => encoded.check(),
            Latents::Cached(_) => Ok(()),
        }
    }
}

/// Images that the tokenizer encodes when they are asked for.
pub struct Encoded {
    /// Batches of images on the model's device, of a micro-batch's size.
    loader: Loader,
    /// Of micro-batches that nobody has looked at: [B], 0 where an image's latents are finite and
    /// NaN where they are not, and the images' names.
    unchecked: Vec<(Tensor, Vec<String>)>,
}

impl Encoded {
    pub fn new(loader: Loader) -> Self {
        let unchecked = Vec::new();
        Self { loader, unchecked }
    }

    fn next(&mut self, tokenizer: &Tokenizer) -> Result<LatentBatch> {
        let batch = info_span!("data wait").in_scope(|| self.loader.next());
        let batch = batch.context("the loader has ended")??;
        let v = info_span!("encode").in_scope(|| tokenizer.encode(&batch.images))?;
        let zeros = v.detach().flatten_from(1)?.affine(0.0, 0.0)?.sum(1)?;
        self.unchecked.push((zeros, batch.names));
        let together = match v.device().is_cpu() {
            true => 1,
            false => CHECKED_TOGETHER,
        };
        if self.unchecked.len() >= together {
            self.check()?;
        }
        Ok(LatentBatch {
            v,
            labels: batch.labels,
            indices: batch.indices,
        })
    }

    /// Latents that are not finite would all get one code, which a generator learns to perfection.
    fn check(&mut self) -> Result<()> {
        for (zeros, names) in self.unchecked.drain(..) {
            if let Some(row) = finite::first_bad_row(&zeros)? {
                return Err(not_finite(
                    &format!("image `{}`", names[row]),
                    "its latents",
                ));
            }
        }
        Ok(())
    }
}

/// Latents read from a cache in the loader's order.
pub struct Cached {
    pub latents: LatentLoader,
    /// [h,w,d]
    pub shape: [usize; 3],
    /// Copies batches so that the GPU does not wait for them.
    #[cfg(feature = "cuda")]
    pub upload: crate::ops::cuda::Upload<f32>,
}

impl Cached {
    fn next(&mut self, device: &Device) -> Result<LatentBatch> {
        let ([h, w, d], latents) = (self.shape, self.latents.next_batch()?);
        let shape = (latents.indices.len(), h, w, d);
        let v = match device {
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) => self
                .upload
                .tensor(cuda, shape, |values| latents.fill(values))?,
            _ => {
                let mut values = vec![0f32; latents.indices.len() * h * w * d];
                latents.fill(&mut values);
                Tensor::from_vec(values, shape, device)?
            }
        };
        Ok(LatentBatch {
            v,
            labels: latents.labels(),
            indices: latents.indices,
        })
    }
}

/// Opens the cache at `path`, which must match `meta`, or makes it: every image is encoded, and its
/// mirror image too if the run uses flips.
pub fn open_or_make(
    path: &Path,
    meta: &CacheMeta,
    source: &Arc<dyn Source>,
    options: &LoaderOptions,
    tokenizer: &Tokenizer,
    device: &Device,
) -> Result<LatentCache> {
    if path.exists() {
        let cache = LatentCache::open(path, meta)?;
        if cache.len() != source.len() && !options.skip_bad {
            return Err(hinted(
                format!(
                    "{} holds {} of {} images: the others could not be read when it was made",
                    path.display(),
                    cache.len(),
                    source.len()
                ),
                "use it as it is with --skip-bad-images, or replace those images and choose another --cache",
            ));
        }
        return Ok(cache);
    }
    tracing::info!("encoding all images into {}", path.display());
    let pass = |mirror| {
        let loader = Loader::ordered(source.clone(), options, meta.image_size, mirror)?;
        Ok::<_, crate::error::Error>(loader.on(device))
    };
    let mirrored = meta.flip.then(|| pass(true)).transpose()?;
    let passes = 1 + u64::from(meta.flip);
    let mut progress = Progress::new("encode", passes * source.len() as u64, 0);
    let (mut done, interrupt) = (0, Interrupt::listen()?);
    let batches = pass(false)?.chain(mirrored.into_iter().flatten());
    let blocks = batches.map(|batch| {
        interrupt.check(
            || {
                let all = passes * source.len() as u64;
                format!("after {done} of {all} images were encoded for the cache")
            },
            || {
                let path = path.display();
                format!("nothing of {path} is kept and no step was done; the same command starts from scratch")
            },
        )?;
        let batch = batch?;
        let v = info_span!("encode").in_scope(|| tokenizer.encode(&batch.images))?;
        let v = v.to_device(&Device::Cpu)?;
        if let Some(row) = finite::first_bad_row(&v)? {
            let image = source.read(batch.indices[row] as usize)?.key;
            return Err(not_finite(&format!("image `{image}`"), "its latents"));
        }
        done += batch.labels.len() as u64;
        progress.set(done, "");
        Ok((v, batch.labels))
    });
    LatentCache::create(path, meta, blocks)
}
