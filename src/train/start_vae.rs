//! From a request to a trained tokenizer: data, weights to start from, stage, loop.

use std::path::{Path, PathBuf};

use candle_core::Device;

use super::plan::Plan;
use super::start::{
    Request, check_compute_type, training_source, validation_images, write_classes,
};
use super::vae::{Parts, VaeStage};
use crate::config::{Config, Perceptual};
use crate::data::{Augment, Loader, LoaderOptions};
use crate::error::{Result, hinted, usage};
use crate::model::perceptual::{Lpips, WIDTHS};
use crate::store::tensors;

const STAGE: &str = "train-vae";

/// Most images of the validation batch.
const VALIDATION: usize = 16;

/// Trains a tokenizer, from `init`'s weights where they fit. Gives the run's folder.
pub fn train(request: &Request, init: Option<&Path>) -> Result<PathBuf> {
    let (config, device) = (&request.config, &request.device);
    let train = &config.train_vae;
    check_compute_type("train_vae", train, device)?;
    let source = training_source(config, request.skip_bad)?;
    let lpips = lpips(config, device)?;
    let begun = request.begin(STAGE, &*source)?;
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
    let (seed, index) = (begun.state.seed, begun.state.index);
    let mut stage = VaeStage::new(Parts {
        config: config.clone(),
        seed,
        device: device.clone(),
        loader: Loader::shuffled(source.clone(), &options, augment, seed, index)?,
        validation: validation_images(
            config,
            &source,
            VALIDATION.min(options.batch_size),
            request.skip_bad,
        )?,
        lpips,
    })?;
    if let Some(path) = init {
        stage.start_from(path)?;
    }
    begun.train(request, train, &mut stage, |folder| {
        write_classes(folder, source.classes())
    })
}

/// What the run would take; see [`Plan`].
pub fn plan(request: &Request) -> Result<Plan> {
    let source = training_source(&request.config, request.skip_bad)?;
    Plan::tokenizer(&request.config, source.len() as u64)
}

/// The perceptual loss that the configuration asks for.
fn lpips(config: &Config, device: &Device) -> Result<Option<Lpips>> {
    let loss = &config.loss;
    if loss.perceptual == Perceptual::None {
        tracing::info!("no perceptual loss (loss.perceptual = \"none\")");
        return Ok(None);
    }
    let needed = |path: &Option<String>, what: &str, option: &str| {
        path.clone().ok_or_else(|| {
            usage(
                format!("the perceptual loss needs {what}"),
                format!(
                    "scripts/weights.sh fetches it (README, \"The perceptual loss\"), {option} FILE takes it; \
                     --set loss.perceptual=none trains without"
                ),
            )
        })
    };
    let vgg = needed(
        &loss.vgg,
        "VGG16's weights (torchvision's vgg16-397923af.pth)",
        "--vgg",
    )?;
    let heads = needed(
        &loss.lpips,
        "the LPIPS heads (lpips_vgg_lin.safetensors, or LPIPS's vgg.pth)",
        "--lpips",
    )?;
    let read = |path: &String| tensors::read(Path::new(path));
    Lpips::new(&WIDTHS, &read(&vgg)?, &read(&heads)?, device)
        .map(Some)
        .map_err(|e| {
            hinted(
                format!("cannot use {vgg} with {heads}: {e}"),
                "--vgg takes torchvision's VGG16 (features.N.weight), --lpips LPIPS's heads (linN.model.1.weight); \
                 scripts/weights.sh makes both",
            )
        })
}
