//! Where the generator's latents v come from: images encoded by the frozen tokenizer during
//! training, or a cache.
//!
//! Both give example n the same image and the same flip, provided that no bad image was left out of
//! the cache; the cache's latents are rounded to bf16.

use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use tracing::info_span;

use crate::data::latent_cache::{CacheMeta, LatentCache, Maker};
use crate::data::latent_loader::LatentLoader;
use crate::data::{Loader, LoaderOptions, Source};
use crate::error::{Context, Error, Result, hinted, is_interrupted, said};
use crate::interrupt::{self, Interrupt};
use crate::model::tokenizer::Tokenizer;
use crate::ops::finite;
use crate::sample::not_finite;
use crate::telemetry::Progress;
use crate::world::World;

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

/// How images become latents.
pub struct Encoder<'a> {
    pub source: &'a Arc<dyn Source>,
    pub loading: &'a LoaderOptions,
    pub tokenizer: &'a Tokenizer,
    pub device: &'a Device,
}

/// Opens the cache at `path`, which must match `meta`; first all ranks together make what is
/// missing of it: every image is encoded, and its mirror image too if the run uses flips.
/// `part_size` is the number of images of a part, if it is not the usual one.
///
/// Errors: those of [`Maker`] and of encoding; a signal asked a rank to stop.
pub fn open_or_make(
    path: &Path,
    part_size: Option<usize>,
    meta: &CacheMeta,
    encoder: &Encoder,
    world: &World,
) -> Result<LatentCache> {
    let (source, images) = (encoder.source, encoder.source.len());
    // Rank 0 looks, for all.
    let begun = match world.is_first() {
        true => Maker::begin(path, meta, images, part_size)?,
        false => None,
    };
    let told = begun.map(|(maker, missing)| (maker.part_size(), missing));
    let told = world.broadcast(serde_json::to_vec(&told)?)?;
    let told: Option<(usize, Vec<usize>)> = serde_json::from_slice(&told)?;
    if let Some((part_size, missing)) = told {
        let maker = Maker::joined(path, meta, images, part_size);
        if let Err(error) = make(&maker, &missing, path, meta, encoder, world) {
            if !is_interrupted(&error) {
                return Err(error);
            }
            // Nobody ends before all have tidied up: a launcher may end all with the first.
            world.part()?;
            return Err(match world.is_first() {
                true => error,
                false => said(&error),
            });
        }
        if world.is_first() {
            maker.finish()?;
        }
    }
    let cache = world.first_then(|| LatentCache::open(path, meta))?;
    if cache.len() != source.len() && !encoder.loading.skip_bad {
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
    Ok(cache)
}

/// A signal asked a rank to stop.
const STOP: u8 = 1;
/// A rank has parts to make.
const MORE: u8 = 2;

/// Makes the `missing` parts, of W ranks each every W-th.
fn make(
    maker: &Maker,
    missing: &[usize],
    path: &Path,
    meta: &CacheMeta,
    encoder: &Encoder,
    world: &World,
) -> Result<()> {
    let own = missing.iter().skip(world.rank()).step_by(world.size());
    let own: Vec<usize> = own.copied().collect();
    let copies = 1 + u64::from(meta.flip);
    let all = own.iter().map(|part| maker.range(*part).len() as u64);
    let (all, mut done) = (all.sum::<u64>() * copies, 0);
    if world.is_first() && !missing.is_empty() {
        let (parts, path) = (maker.parts(), path.display());
        tracing::info!(
            "encoding images into {} of {parts} parts of {path}",
            missing.len()
        );
    }
    let mut progress = world.is_first().then(|| Progress::new("encode", all, 0));
    let interrupt = Interrupt::listen()?;
    // Ranks stop together: each says before each batch whether it was asked to, and those that have
    // made their parts say so until all have.
    let turn = |more: bool, done: u64| -> Result<bool> {
        let own = [(interrupt.requested(), STOP), (more, MORE)];
        let own = own.iter().filter(|(is_so, _)| *is_so);
        let agreed = world.agree(own.fold(0, |flags, (_, flag)| flags | flag))?;
        match agreed & STOP != 0 {
            true => Err(interrupt::stopped(
                format!("after {done} of {all} images were encoded for the cache"),
                format!(
                    "whole parts of {} are kept and no step was done; the same command goes on with the others",
                    path.display()
                ),
            )),
            false => Ok(agreed & MORE != 0),
        }
    };
    for part in own {
        let pass = |mirror| {
            let (source, range) = (encoder.source.clone(), maker.range(part));
            let (size, loading) = (meta.image_size, encoder.loading);
            let loader = Loader::ordered_part(source, loading, size, mirror, range)?;
            Ok::<_, Error>(loader.on(encoder.device))
        };
        let mirrored = meta.flip.then(|| pass(true)).transpose()?;
        let batches = pass(false)?.chain(mirrored.into_iter().flatten());
        let blocks = batches.map(|batch| {
            turn(true, done)?;
            let batch = batch?;
            let v = info_span!("encode").in_scope(|| encoder.tokenizer.encode(&batch.images))?;
            let v = v.to_device(&Device::Cpu)?;
            if let Some(row) = finite::first_bad_row(&v)? {
                let image = encoder.source.read(batch.indices[row] as usize)?.key;
                return Err(not_finite(&format!("image `{image}`"), "its latents"));
            }
            done += batch.labels.len() as u64;
            if let Some(progress) = &mut progress {
                progress.set(done, "");
            }
            Ok((v, batch.labels))
        });
        maker.write(part, blocks)?;
    }
    while turn(false, done)? {}
    Ok(())
}
