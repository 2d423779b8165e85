//! `--init`: loads a tokenizer's weights from a file by name; tensors that do not match are listed
//! and start from scratch.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;

use crate::error::{Result, hinted, usage};
use crate::ops::finite;
use crate::store::{Params, names};

/// Number of names of the file that an error lists.
const SHOWN: usize = 3;

/// Sets every parameter that `tensors` has under its name and in its shape, after removing a prefix
/// that the file may use (a bundle's `tokenizer.`, a wrapper's `module.`). Logs the parameters that
/// start from scratch.
///
/// Errors: no parameter was set; lists the first tensors of the file.
pub fn set_what_fits(
    params: &Params,
    tensors: &BTreeMap<String, Tensor>,
    from: &Path,
) -> Result<()> {
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
                fresh.push(misfit);
            }
            None => fresh.push(format!("{name} (not in the file)")),
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
                "{} has none of the tokenizer's {} parameters{why}: its {} tensors are {}{more}",
                from.display(),
                params.len(),
                tensors.len(),
                known.join(", ")
            ),
            "names must end as taming-transformers' do (encoder.…, decoder.…, quant_conv.…), and the configuration must be \
             the one that the weights were trained with",
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
    for name in fresh {
        tracing::info!("  from scratch: {name}");
    }
    Ok(())
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
            set_what_fits(&params, &file(prefix, &[2, 2])?, Path::new("a.pth"))?;
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
        let error = set_what_fits(&params()?, &bad, Path::new("a.pth")).unwrap_err();
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
        let error = set_what_fits(&params()?, &other, Path::new("a.pth")).unwrap_err();
        let (text, code) = report(&error);
        assert!(
            text.contains("a.pth") && text.contains("its 1 tensors are unet.in.w"),
            "{text}"
        );
        assert_eq!(code, 2);
        let error =
            set_what_fits(&params()?, &file("module.", &[3, 2])?, Path::new("a.pth")).unwrap_err();
        let (text, _) = report(&error);
        assert!(text.contains("[2, 2], the file has [3, 2]"), "{text}");
        Ok(())
    }
}
