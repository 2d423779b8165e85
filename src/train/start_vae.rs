//! From a request to a trained tokenizer: data, initial weights, stage, loop.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};

use super::estimate::RunEstimate;
use super::init::{Part, Start};
use super::start::{
    Request, check_compute_type, training_source, validation_images, write_classes,
};
use super::vae::{Parts, VaeStage};
use crate::config::{self, Config};
use crate::data::{Augment, Loader, LoaderOptions};
use crate::error::{Result, hinted, usage};
use crate::model::perceptual::{Lpips, WIDTHS};
use crate::store::{digest, tensors};

const STAGE: &str = "train-vae";

/// The maximum size of the validation batch.
const VALIDATION: usize = 16;

/// Trains a tokenizer, initialised from `init` (a run, a bundle or a file of weights) where tensors
/// match. Returns the run's folder.
pub fn train(request: &Request, init: Option<&Path>) -> Result<PathBuf> {
    let (config, device) = (&request.config, &request.device);
    let train = &config.train_vae;
    check_compute_type("train_vae", train, device)?;
    if config.loss.decoder_only && init.is_none() && request.resume.is_none() {
        return Err(usage(
            "loss.decoder_only trains a decoder for the latents of other weights, and there are none",
            "--init FILE names a run or a bundle to start from",
        ));
    }
    let source = training_source(config, &request.world, request.skip_bad)?;
    let perceptual = perceptual(config)?;
    let init = init
        .map(|path| Start::read(path, Part::Tokenizer))
        .transpose()?;
    let mut begun = request.begin(STAGE, &*source)?;
    let lpips = match perceptual {
        None => None,
        Some(weights) => {
            begun.record_frozen_hash(&request.world, "VGG16", digest::of_tensors(&weights.vgg)?)?;
            begun.record_frozen_hash(
                &request.world,
                "set of LPIPS heads",
                digest::of_tensors(&weights.heads)?,
            )?;
            Some(weights.build(device)?)
        }
    };
    let options = LoaderOptions {
        batch_size: train.micro_batch(),
        workers: request.workers,
        skip_bad: request.skip_bad,
    };
    let data = &config.data;
    let augment = Augment {
        size: data.image_size,
        crop: data.crop,
        flip: data.flip,
    };
    let (seed, index, share) = (begun.state.seed, begun.state.index, request.world.share());
    let mut stage = VaeStage::new(Parts {
        config: config.clone(),
        seed,
        device: device.clone(),
        batches: Box::new(
            Loader::shared(source.clone(), &options, augment, seed, index, share)?.on(device),
        ),
        validation: request.world.first_then(|| {
            let count = VALIDATION.min(options.batch_size);
            validation_images(config, &source, count, request.skip_bad)
        })?,
        lpips,
    })?;
    if let Some(start) = &init {
        stage.start_from(start)?;
    }
    begun.train(request, train, &mut stage, |folder| {
        write_classes(folder, source.classes())
    })
}

/// An estimate of what the run would need; see [`RunEstimate`].
///
/// Errors: also those of weights to start from that cannot be read.
pub fn estimate(request: &Request, init: Option<&Path>) -> Result<RunEstimate> {
    init.map(|path| Start::read(path, Part::Tokenizer))
        .transpose()?;
    let source = training_source(&request.config, &request.world, request.skip_bad)?;
    let estimate = RunEstimate::tokenizer(&request.config, source.len() as u64)?;
    Ok(estimate.of_data(source.summary()))
}

/// What the perceptual loss is built from.
struct Perceptual {
    /// VGG16's convolutions.
    vgg: BTreeMap<String, Tensor>,
    heads: BTreeMap<String, Tensor>,
    /// The two files that these came from.
    files: [String; 2],
}

impl Perceptual {
    fn build(&self, device: &Device) -> Result<Lpips> {
        Lpips::new(&WIDTHS, &self.vgg, &self.heads, device).map_err(|e| {
            let [vgg, heads] = &self.files;
            hinted(
                format!("cannot use {vgg} with {heads}: {e}"),
                "--vgg takes torchvision's VGG16 (features.N.weight), --lpips LPIPS's heads (linN.model.1.weight); \
                 scripts/weights.sh makes both",
            )
        })
    }
}

/// The weights of the perceptual loss that the configuration asks for.
fn perceptual(config: &Config) -> Result<Option<Perceptual>> {
    let loss = &config.loss;
    if loss.perceptual == config::Perceptual::None {
        tracing::info!("no perceptual loss (loss.perceptual = \"none\")");
        return Ok(None);
    }
    let needed = |path: &Option<String>, what: &str, option: &str| {
        path.clone().ok_or_else(|| {
            usage(
                format!("the perceptual loss needs {what}"),
                format!(
                    "scripts/weights.sh downloads it (README, \"Weights\"), {option} FILE names it; \
                     --set loss.perceptual=none trains without"
                ),
            )
        })
    };
    let files = [
        needed(
            &loss.vgg,
            "VGG16's weights (torchvision's vgg16-397923af.pth)",
            "--vgg",
        )?,
        needed(
            &loss.lpips,
            "the LPIPS heads (lpips_vgg_lin.safetensors, or LPIPS's vgg.pth)",
            "--lpips",
        )?,
    ];
    let [mut vgg, heads] = [
        tensors::read_network(Path::new(&files[0]))?,
        tensors::read_network(Path::new(&files[1]))?,
    ];
    // The classifier is not part of the loss, and some files lack it.
    vgg.retain(|name, _| name.starts_with("features."));
    Ok(Some(Perceptual { vgg, heads, files }))
}
