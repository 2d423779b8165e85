//! `--init`: a tokenizer's weights from a file, by name; what does not fit is listed and starts fresh.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;

use crate::error::{Result, usage};
use crate::store::Params;

/// Sets every parameter that `tensors` has by name (in a bundle, behind `tokenizer.`) and in its shape; says what starts fresh.
pub fn set_what_fits(
    params: &Params,
    tensors: &BTreeMap<String, Tensor>,
    from: &Path,
) -> Result<()> {
    let mut fresh = Vec::new();
    for (name, var) in params.iter() {
        let bundled = || tensors.get(&format!("tokenizer.{name}"));
        match tensors.get(name).or_else(bundled) {
            Some(tensor) if tensor.shape() == var.shape() => {
                var.set(&tensor.to_dtype(var.dtype())?.to_device(var.device())?)?;
            }
            Some(tensor) => {
                fresh.push(format!(
                    "{name} ({:?}, the file has {:?})",
                    var.dims(),
                    tensor.dims()
                ));
            }
            None => fresh.push(format!("{name} (not in the file)")),
        }
    }
    let set = params.len() - fresh.len();
    if set == 0 {
        return Err(usage(
            format!(
                "{} has none of the tokenizer's {} parameters",
                from.display(),
                params.len()
            ),
            "names must be taming-transformers' (encoder.…, decoder.…, quant_conv.…)",
        ));
    }
    tracing::info!(
        "{}: {set} of {} parameters set",
        from.display(),
        params.len()
    );
    for name in fresh {
        tracing::info!("  fresh: {name}");
    }
    Ok(())
}
