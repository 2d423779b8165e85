//! A trained model ready for use: the tensors of a bundle or a run, loaded into modules.

use std::path::{Path, PathBuf};

use candle_core::Device;

use super::sampler::Sampler;
use crate::config::Config;
use crate::data::Classes;
use crate::error::{Context, Result, hinted};
use crate::model::{Generator, Tokenizer};
use crate::store::bundle::{Bundle, Tensors};
use crate::store::model::{self, Weights};
use crate::store::{Scope, digest};

/// A tokenizer and, if there is one, its generator.
pub struct Pretrained {
    pub path: PathBuf,
    pub config: Config,
    /// Empty: the images had no labels.
    pub classes: Classes,
    pub tokenizer: Tokenizer,
    pub device: Device,
    /// With its number of classes.
    generator: Option<(Generator, usize)>,
    bundle: Bundle,
}

impl Pretrained {
    /// The model of `--model` (see [`model::locate`]) on `device`, with the weights of the moving
    /// average.
    pub fn open(asked: Option<&Path>, device: &Device) -> Result<Self> {
        let path = model::locate(asked)?;
        let bundle = model::load(&path, Weights::Ema)?;
        Self::new(bundle, &path, device).with_context(|| format!("cannot use {}", path.display()))
    }

    fn new(bundle: Bundle, path: &Path, device: &Device) -> Result<Self> {
        let config = &bundle.config;
        let tokenizer = built(&bundle.tokenizer, device, |scope| {
            Ok(Tokenizer::new(config, scope)?.for_inference(device))
        })?;
        let generator = match &bundle.generator {
            Some(tensors) => Some(generator(tensors, config, device)?),
            None => None,
        };
        let classes = serde_json::from_value(bundle.classes.clone()).context("`classes`")?;
        Ok(Self {
            path: path.to_path_buf(),
            config: config.clone(),
            classes,
            tokenizer,
            device: device.clone(),
            generator,
            bundle,
        })
    }

    /// Errors: the model is a tokenizer only.
    pub fn sampler(&self) -> Result<Sampler<'_>> {
        let parameters = self.bundle.generator()?;
        let (generator, classes) = self.generator.as_ref().context("no generator")?;
        let sampler = Sampler::new(generator, &self.tokenizer, &self.config, *classes);
        #[cfg(feature = "cuda")]
        let sampler = sampler.on_gpu(&self.config, parameters)?;
        #[cfg(not(feature = "cuda"))]
        let _ = parameters;
        Ok(sampler)
    }

    /// The name of the implementation behind [`Pretrained::sampler`]; different implementations
    /// give different samples.
    pub fn sampler_name(&self) -> &'static str {
        #[cfg(feature = "cuda")]
        if let Some((_, classes)) = &self.generator
            && self.device.is_cuda()
            && super::gpu::GpuSampler::serves(&self.config, *classes).is_ok()
        {
            return "GPU kernels, bf16";
        }
        match self.device {
            Device::Cpu => "CPU, f32",
            _ => "GPU, f32",
        }
    }

    /// Errors: the model is a tokenizer only.
    pub fn generator(&self) -> Result<&Generator> {
        self.bundle.generator()?;
        let (generator, _) = self.generator.as_ref().context("no generator")?;
        Ok(generator)
    }

    /// Height and width of the latents.
    pub fn side(&self) -> usize {
        self.config.grid()
    }

    /// A hash of all weights of the tokenizer and the generator.
    pub fn hash(&self) -> Result<String> {
        let mut tensors = self.bundle.tokenizer.clone();
        for (name, tensor) in self.bundle.generator.iter().flatten() {
            tensors.insert(format!("generator.{name}"), tensor.clone());
        }
        digest::of_tensors(&tensors)
    }

    /// A hash of the configuration.
    pub fn config_hash(&self) -> Result<String> {
        Ok(digest::of_bytes(self.config.to_json()?.as_bytes()))
    }

    /// The hash that ties codes to this tokenizer.
    pub fn tokenizer_hash(&self) -> Result<String> {
        self.bundle.tokenizer_hash()
    }
}

fn generator(tensors: &Tensors, config: &Config, device: &Device) -> Result<(Generator, usize)> {
    let labels = tensors
        .get("y_embedder.weight")
        .context("the generator has no `y_embedder.weight`")?;
    // The last row is the empty condition.
    let classes = labels.dim(0)?.saturating_sub(1);
    let generator = built(tensors, device, |scope| {
        Generator::new(config, classes, scope)
    })?;
    Ok((generator, classes))
}

/// A module that consists of exactly these tensors.
fn built<M>(
    tensors: &Tensors,
    device: &Device,
    make: impl FnOnce(&Scope) -> candle_core::Result<M>,
) -> Result<M> {
    let scope = Scope::load(tensors, device).frozen();
    let damaged = "the file is damaged, or its configuration belongs to another model";
    let module = make(&scope).map_err(|e| hinted(e.to_string(), damaged))?;
    match scope.unused().first() {
        Some(name) => Err(hinted(
            format!("`{name}` is not part of the model"),
            damaged,
        )),
        None => Ok(module),
    }
}
