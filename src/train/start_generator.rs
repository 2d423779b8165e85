//! From a request to a trained generator: data, the frozen tokenizer, stage, loop.

use std::path::PathBuf;

use super::estimate::RunEstimate;
use super::generator::{GeneratorStage, Parts};
use super::init::{Part, Start};
use super::latents::{Cached, Encoded, Encoder, Latents, open_or_make};
use super::start::{Request, check_compute_type, training_source, write_classes};
use crate::config::{Config, Crop};
use crate::data::latent_cache::CacheMeta;
use crate::data::latent_loader::{LatentLoader, LatentOrder};
use crate::data::{Augment, Classes, Loader, LoaderOptions, Order};
use crate::error::{Result, usage};
use crate::model::tokenizer::Tokenizer;
use crate::store::Scope;
use crate::store::bundle::Bundle;
use crate::store::model::{self, Weights};
use crate::store::run::RunFolder;

const STAGE: &str = "train-gen";

/// What the user asked for train-gen, besides [`Request`].
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The tokenizer of a new run: a train-vae run or a bundle.
    pub vae: Option<PathBuf>,
    /// Read latents from this cache; make it first if it is missing.
    pub cache: Option<PathBuf>,
    /// Images of a part of a cache that is made, if it is not the usual number.
    pub cache_part: Option<usize>,
    /// Start a new run from these weights where tensors match: a run, a bundle or a file.
    pub init: Option<PathBuf>,
}

/// Trains a generator on a tokenizer's latents. Returns the run's folder.
pub fn train(request: &Request, options: &Options) -> Result<PathBuf> {
    let mut request = request.clone();
    let device = request.device.clone();
    check_compute_type("train_gen", &request.config.train_gen, &device)?;
    let source = training_source(&request.config, &request.world, request.skip_bad)?;
    let share = request.world.share();
    let mut begun = request.begin(STAGE, &*source)?;
    begun.state.cache = cache(&request, options, begun.state.cache.take())?;
    let frozen = frozen(&request, options)?;
    let init = options.init.as_deref();
    let init = init
        .map(|path| Start::read(path, Part::Generator))
        .transpose()?;
    let tokenizer_hash = frozen.tokenizer_hash()?;
    begun.record_frozen_hash(&request.world, model::TOKENIZER, tokenizer_hash.clone())?;
    inherit_tokenizer_config(&mut request.config, &frozen.config);
    request.config.validate()?;
    let config = request.config.clone();
    let train = &config.train_gen;
    let classes = class_count(&config, source.classes())?;
    let tokenizer = Tokenizer::new(&config, &Scope::load(&frozen.tokenizer, &device).frozen())?
        .for_inference(&device);
    let (seed, index, size) = (begun.state.seed, begun.state.index, config.data.image_size);
    let loading = LoaderOptions {
        batch_size: train.micro_batch(),
        workers: request.workers,
        skip_bad: request.skip_bad,
    };
    let augment = Augment {
        size,
        crop: Crop::Center,
        flip: config.data.flip,
    };
    let latents = match &begun.state.cache {
        None => {
            let loader = Loader::shared(source.clone(), &loading, augment, seed, index, share)?;
            Latents::Encoded(Box::new(Encoded::new(loader.on(&device))))
        }
        Some(path) => {
            let meta = CacheMeta {
                tokenizer: tokenizer_hash,
                data: source.fingerprint()?,
                image_size: size,
                flip: augment.flip,
                shape: [config.grid(), config.grid(), config.tokenizer.embed_dim],
            };
            let encoder = Encoder {
                source: &source,
                loading: &loading,
                tokenizer: &tokenizer,
                device: &device,
            };
            let cache = open_or_make(path, options.cache_part, &meta, &encoder, &request.world)?;
            let order = LatentOrder {
                order: Order::new(seed, cache.len()),
                augment,
                seed,
                batch_size: loading.batch_size,
                start: index,
                share,
            };
            Latents::Cached(Box::new(Cached {
                latents: LatentLoader::start(cache, order)?,
                shape: meta.shape,
                #[cfg(feature = "cuda")]
                upload: Default::default(),
            }))
        }
    };
    let parts = Parts {
        config: config.clone(),
        seed,
        device,
        latents,
        tokenizer,
        classes,
        init,
    };
    let prepare = |folder: &_| {
        write_classes(folder, source.classes())?;
        frozen.write(&folder.tokenizer(), false)
    };
    #[cfg(feature = "cuda")]
    if train.compute_type == crate::config::ComputeType::Bf16 {
        let mut stage = super::generator_gpu::GpuGeneratorStage::new(parts, &request.world)?;
        return begun.train(&request, train, &mut stage, prepare);
    }
    begun.train(&request, train, &mut GeneratorStage::new(parts)?, prepare)
}

/// An estimate of what the run would need; see [`RunEstimate`].
///
/// Errors: also those of weights to start from that cannot be read.
pub fn estimate(request: &Request, options: &Options) -> Result<RunEstimate> {
    let init = options.init.as_deref();
    init.map(|path| Start::read(path, Part::Generator))
        .transpose()?;
    let mut config = request.config.clone();
    inherit_tokenizer_config(&mut config, &frozen(request, options)?.config);
    let source = training_source(&config, &request.world, request.skip_bad)?;
    let classes = class_count(&config, source.classes())?;
    let (cached, images) = (options.cache.is_some(), source.len() as u64);
    let estimate = RunEstimate::generator(&config, classes, cached, images)?;
    Ok(estimate.of_data(source.summary()))
}

/// The run's cache. A resumed run uses the cache it used before, possibly at a new path.
fn cache(request: &Request, options: &Options, own: Option<PathBuf>) -> Result<Option<PathBuf>> {
    let asked = options
        .cache
        .as_deref()
        .map(std::path::absolute)
        .transpose()?;
    if request.resume.is_some() && own.is_none() && asked.is_some() {
        return Err(usage(
            "--cache for a run that was started without",
            "a cache rounds the latents to bf16, so the run would not continue as it began; leave --cache out",
        ));
    }
    Ok(asked.or(own))
}

/// The number of label classes: as configured, or as many as the data has.
fn class_count(config: &Config, found: &Classes) -> Result<usize> {
    let found = found.len().max(1);
    match config.generator.classes {
        Some(asked) if asked < found => Err(usage(
            format!("generator.classes is {asked}, but the data has {found} classes"),
            "leave generator.classes out, or raise it",
        )),
        Some(asked) => Ok(asked),
        None => Ok(found),
    }
}

/// The frozen tokenizer; for a resumed run, the copy in its folder.
fn frozen(request: &Request, options: &Options) -> Result<Bundle> {
    let bundle = match (&request.resume, &options.vae) {
        (Some(_), Some(_)) => Err(usage(
            "--vae with --resume",
            "a resumed run keeps the tokenizer it was started with",
        )),
        (Some(run), None) => Bundle::read(&RunFolder::locate(run)?.0.tokenizer()),
        (None, Some(vae)) => model::load(vae, Weights::Ema),
        (None, None) => Err(usage(
            "no tokenizer",
            "name a train-vae run or a bundle: --vae RUN|BUNDLE",
        )),
    };
    Ok(Bundle {
        generator: None,
        ..bundle?
    })
}

/// Copies the settings that a generator inherits from its tokenizer.
pub fn copy_tokenizer_config(config: &mut Config, own: &Config) {
    config.tokenizer = own.tokenizer.clone();
    config.quantizer = own.quantizer.clone();
    config.schedule = own.schedule.clone();
    config.data.image_size = own.data.image_size;
}

/// Copies the settings that the tokenizer was trained with, because they decide what the generator
/// sees; logs what changes.
fn inherit_tokenizer_config(config: &mut Config, own: &Config) {
    let asked = config.clone();
    copy_tokenizer_config(config, own);
    for (section, same) in [
        ("tokenizer", asked.tokenizer == config.tokenizer),
        ("quantizer", asked.quantizer == config.quantizer),
        ("schedule", asked.schedule == config.schedule),
        (
            "data.image_size",
            asked.data.image_size == config.data.image_size,
        ),
    ] {
        if !same {
            tracing::info!("{section}: as the tokenizer was trained");
        }
    }
}
