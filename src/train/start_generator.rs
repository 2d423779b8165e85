//! From a request to a trained generator: data, the frozen tokenizer, stage, loop.

use std::path::{Path, PathBuf};

use super::generator::{GeneratorStage, Parts};
use super::latents::Latents;
use super::start::{Request, check_compute_type, locate, training_source, write_classes};
use crate::config::{Config, Crop};
use crate::data::Classes;
use crate::data::augment::Augment;
use crate::data::loader::{Loader, LoaderOptions};
use crate::error::{Result, usage};
use crate::model::tokenizer::Tokenizer;
use crate::store::Scope;
use crate::store::bundle::Bundle;
use crate::store::model::{self, Weights};

const STAGE: &str = "train-gen";

/// Trains a generator on the latents of `vae` (a run or a bundle). Gives the run's folder.
pub fn train(request: &Request, vae: Option<&Path>) -> Result<PathBuf> {
    let mut request = request.clone();
    let device = request.device.clone();
    check_compute_type("train_gen", &request.config.train_gen, &device)?;
    let source = training_source(&request.config, request.skip_bad)?;
    let begun = request.begin(STAGE, &*source)?;
    let mut frozen = frozen(&request, vae)?;
    frozen.generator = None;
    adopt(&mut request.config, &frozen.config);
    request.config.validate()?;
    let config = request.config.clone();
    let train = &config.train_gen;
    let classes = class_count(&config, source.classes())?;
    let tokenizer = Tokenizer::new(&config, &Scope::load(&frozen.tokenizer, &device))?;
    let options = LoaderOptions {
        batch_size: train.batch_size / train.accumulate,
        workers: request.workers,
        skip_bad: request.skip_bad,
    };
    let data = &config.data;
    let augment = Augment {
        size: data.image_size,
        crop: Crop::Center,
        flip: data.flip,
    };
    let (seed, index) = (begun.state.seed, begun.state.index);
    let loader = Loader::shuffled(source.clone(), &options, augment, seed, index)?;
    let mut stage = GeneratorStage::new(Parts {
        config: config.clone(),
        seed,
        device,
        latents: Latents::Encoded(loader),
        tokenizer,
        classes,
    })?;
    begun.train(&request, train, &mut stage, |folder| {
        write_classes(folder, source.classes())?;
        frozen.write(&folder.tokenizer(), false)
    })
}

/// Classes of the labels: as configured, or as many as the data has.
fn class_count(config: &Config, found: &Classes) -> Result<usize> {
    let found = found.len().max(1);
    match config.generator.classes {
        Some(asked) if asked < found => Err(usage(
            format!("generator.classes is {asked}, but the data has {found} classes"),
            "leave it out, or raise it",
        )),
        Some(asked) => Ok(asked),
        None => Ok(found),
    }
}

/// The frozen tokenizer: of a resumed run, the copy in its folder.
fn frozen(request: &Request, vae: Option<&Path>) -> Result<Bundle> {
    match (&request.resume, vae) {
        (Some(_), Some(_)) => Err(usage(
            "--vae with --resume",
            "a resumed run keeps the tokenizer it was started with",
        )),
        (Some(run), None) => Bundle::read(&locate(run)?.0.tokenizer()),
        (None, Some(vae)) => model::load(vae, Weights::Ema),
        (None, None) => Err(usage(
            "no tokenizer",
            "name a train-vae run or a bundle: --vae RUN|BUNDLE",
        )),
    }
}

/// What the tokenizer was trained with decides what the generator sees; says what that changes.
fn adopt(config: &mut Config, own: &Config) {
    let asked = config.clone();
    config.tokenizer = own.tokenizer.clone();
    config.quantizer = own.quantizer.clone();
    config.schedule = own.schedule.clone();
    config.data.image_size = own.data.image_size;
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
