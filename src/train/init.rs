//! `--init`: starts a tokenizer or a generator from other weights, by name: of a run, a bundle or a
//! file; tensors that do not match are listed and start from scratch.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Tensor;

use crate::config::Config;
use crate::error::{Result, hinted, usage};
use crate::model::tokenizer::of_decoder;
use crate::ops::finite;
use crate::store::model::{self, Weights};
use crate::store::{Params, builtin, bundle, hub, names, tensors};

/// Number of names of the file that an error lists.
const SHOWN: usize = 3;

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Tokenizer,
    Generator,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Tokenizer => "tokenizer",
            Self::Generator => "generator",
        }
    }

    /// What its names look like.
    fn names(self) -> &'static str {
        match self {
            Self::Tokenizer => "taming-transformers' do (encoder.…, decoder.…, quant_conv.…)",
            Self::Generator => "rdpm's do (blocks.…, head.…, x_embedder.…)",
        }
    }
}

/// Weights to start from.
pub struct Start {
    part: Part,
    path: PathBuf,
    tensors: BTreeMap<String, Tensor>,
    /// What the weights were trained with; not of a file of other weights.
    config: Option<Config>,
}

impl Start {
    /// Reads a run (or one of its checkpoints; its moving average), a bundle, the built-in model
    /// (`builtin`), or any other file of weights.
    pub fn read(path: &Path, part: Part) -> Result<Self> {
        let is_model = path == Path::new(builtin::NAME)
            || path.is_dir()
            || hub::address(path).is_some()
            || bundle::kind_of(path).is_some();
        let (tensors, config) = match is_model {
            true => {
                let model = model::load(path, Weights::Ema)?;
                let tensors = match part {
                    Part::Generator => model.generator()?.clone(),
                    Part::Tokenizer => model.tokenizer,
                };
                (tensors, Some(model.config))
            }
            false => (tensors::read(path)?, None),
        };
        Ok(Self {
            part,
            path: path.to_path_buf(),
            tensors,
            config,
        })
    }

    /// Sets every parameter that is there; see [`set_what_fits`].
    pub fn set(&self, params: &Params) -> Result<()> {
        set_what_fits(params, &self.tensors, self.part, &self.path)?;
        Ok(())
    }

    /// The same for a tokenizer whose codes must stay: all that makes them has to be there.
    ///
    /// Errors: a parameter outside the decoder that is not there, or is of another shape; weights
    /// that were trained with other settings, or do not say with which.
    pub fn set_keeping_codes(&self, params: &Params, config: &Config) -> Result<()> {
        let fresh = set_what_fits(params, &self.tensors, self.part, &self.path)?;
        let lost = fresh.iter().find(|name| !of_decoder(name));
        let what = match (&self.config, lost) {
            (_, Some(name)) => format!("`{name}`"),
            (None, None) => "its configuration".to_string(),
            (Some(own), None) => match own.code_difference(config) {
                Some(section) => format!("the same [{section}]"),
                None => return Ok(()),
            },
        };
        Err(usage(
            format!(
                "loss.decoder_only keeps all codes, but {} does not have {what}",
                self.path.display()
            ),
            "name a run or a bundle, and the configuration that it was trained with: \
             --config RUN/config.toml",
        ))
    }
}

/// Sets every parameter that `tensors` has under its name and in its shape, after removing a prefix
/// that the file may use (a bundle's `tokenizer.`, a wrapper's `module.`). Logs the parameters that
/// start from scratch, and returns their names.
///
/// Errors: no parameter was set; lists the first tensors of the file.
fn set_what_fits(
    params: &Params,
    tensors: &BTreeMap<String, Tensor>,
    part: Part,
    from: &Path,
) -> Result<Vec<String>> {
    let found = names::matched(tensors, params.iter().map(|(name, _)| name));
    let (mut fresh, mut other_shape) = (Vec::new(), None);
    for (name, var) in params.iter() {
        match found.tensors.get(name) {
            Some(tensor) if tensor.shape() == var.shape() => {
                if !finite::is_finite(tensor)? {
                    return Err(hinted(
                        format!("{}: `{name}` holds NaN or infinity", from.display()),
                        "the file is damaged, or its training has diverged: use another",
                    ));
                }
                var.set(&tensor.to_dtype(var.dtype())?.to_device(var.device())?)?;
            }
            Some(tensor) => {
                let (own, found) = (var.dims(), tensor.dims());
                let misfit = format!("{name} ({own:?}, the file has {found:?})");
                other_shape.get_or_insert(misfit.clone());
                fresh.push((name.to_string(), misfit));
            }
            None => fresh.push((name.to_string(), format!("{name} (not in the file)"))),
        }
    }
    let set = params.len() - fresh.len();
    if set == 0 {
        let known: Vec<&str> = tensors.keys().map(String::as_str).take(SHOWN).collect();
        let more = if tensors.len() > SHOWN { ", …" } else { "" };
        let why = other_shape.map_or(String::new(), |misfit| {
            format!(" in their shapes, as {misfit}")
        });
        return Err(usage(
            format!(
                "{} has none of the {}'s {} parameters{why}: its {} tensors are {}{more}",
                from.display(),
                part.name(),
                params.len(),
                tensors.len(),
                known.join(", ")
            ),
            format!(
                "names must end as {}, and the configuration must be the one that the weights were trained with",
                part.names()
            ),
        ));
    }
    tracing::info!(
        "{}: {set} of {} parameters set{}",
        from.display(),
        params.len(),
        match found.prefix.as_str() {
            "" => String::new(),
            prefix => format!(", with the prefix `{prefix}`"),
        }
    );
    if !found.others.is_empty() {
        tracing::warn!(
            "{}: prefix `{}` has as many, which are not used",
            from.display(),
            found.others.join("`, `")
        );
    }
    if set < fresh.len() {
        tracing::warn!(
            "{}: most parameters start from scratch: is the configuration that of the weights?",
            from.display()
        );
    }
    let listed = fresh.into_iter().map(|(name, why)| {
        tracing::info!("  from scratch: {why}");
        name
    });
    Ok(listed.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::report;
    use crate::store::{Init, Scope};
    use candle_core::{DType, Device};

    fn params() -> Result<Params> {
        let scope = Scope::init(1, &Device::Cpu);
        scope.get("encoder.conv.weight", (2, 2), Init::Zeros)?;
        scope.get("encoder.conv.bias", 2, Init::Zeros)?;
        Ok(scope.finish())
    }

    fn file(prefix: &str, shape: &[usize]) -> Result<BTreeMap<String, Tensor>> {
        let tensor = Tensor::ones(shape, DType::F64, &Device::Cpu)?;
        Ok(BTreeMap::from([(
            format!("{prefix}encoder.conv.weight"),
            tensor,
        )]))
    }

    #[test]
    fn a_wrappers_prefix_is_no_other_name() -> Result<()> {
        for prefix in [
            "",
            "module.",
            "_orig_mod.",
            "tokenizer.",
            "module._orig_mod.model.",
        ] {
            let params = params()?;
            set_what_fits(
                &params,
                &file(prefix, &[2, 2])?,
                Part::Tokenizer,
                Path::new("a.pth"),
            )?;
            let set = params
                .get("encoder.conv.weight")
                .expect("made")
                .to_vec2::<f32>()?;
            assert_eq!(set, [[1.0, 1.0], [1.0, 1.0]], "{prefix}");
        }
        Ok(())
    }

    #[test]
    fn weights_that_are_not_finite_start_nothing() -> Result<()> {
        let bad = Tensor::new(&[[1f32, f32::NAN], [0.0, 0.0]], &Device::Cpu)?;
        let bad = BTreeMap::from([("encoder.conv.weight".to_string(), bad)]);
        let error =
            set_what_fits(&params()?, &bad, Part::Tokenizer, Path::new("a.pth")).unwrap_err();
        let (text, _) = report(&error);
        assert!(
            text.contains("a.pth: `encoder.conv.weight` holds NaN"),
            "{text}"
        );
        Ok(())
    }

    #[test]
    fn where_nothing_fits_the_files_names_are_shown() -> Result<()> {
        let other = BTreeMap::from([(
            "unet.in.w".to_string(),
            Tensor::ones(1, DType::F32, &Device::Cpu)?,
        )]);
        let error =
            set_what_fits(&params()?, &other, Part::Generator, Path::new("a.pth")).unwrap_err();
        let (text, code) = report(&error);
        assert!(
            text.contains("a.pth") && text.contains("its 1 tensors are unet.in.w"),
            "{text}"
        );
        assert!(
            text.contains("none of the generator's 2 parameters") && text.contains("blocks.…"),
            "{text}"
        );
        assert_eq!(code, 2);
        let error = set_what_fits(
            &params()?,
            &file("module.", &[3, 2])?,
            Part::Tokenizer,
            Path::new("a.pth"),
        )
        .unwrap_err();
        let (text, _) = report(&error);
        assert!(text.contains("[2, 2], the file has [3, 2]"), "{text}");
        Ok(())
    }
}
