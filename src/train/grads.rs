//! Gradients as an ordered map from parameter name to tensor (docs/design.md, decision 5). Only
//! this module knows how they were computed.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var, bail};

use crate::ops::add;

/// Gradients by parameter name.
pub type Gradients = BTreeMap<String, Tensor>;

/// The gradient of every one of `params`, taken from the result of a backward pass.
///
/// Errors: a parameter without a gradient, by name (an operation dropped it, or the loss does not
/// depend on it).
pub fn gradients<'a>(
    mut store: GradStore,
    params: impl IntoIterator<Item = (&'a str, &'a Var)>,
) -> Result<Gradients> {
    let (mut found, mut missing) = (Gradients::new(), Vec::new());
    for (name, var) in params {
        match store.remove(var) {
            Some(gradient) => {
                found.insert(name.to_string(), gradient);
            }
            None => missing.push(name),
        }
    }
    if !missing.is_empty() {
        bail!(
            "no gradient reached {} parameters: {missing:?}",
            missing.len()
        );
    }
    Ok(found)
}

/// Adds `other` to `sum`, name by name.
pub fn accumulate(sum: &mut Gradients, other: Gradients) -> Result<()> {
    for (name, gradient) in other {
        let total = match sum.get(&name) {
            Some(so_far) => add(so_far, &gradient)?,
            None => gradient,
        };
        sum.insert(name, total);
    }
    Ok(())
}

/// The gradient at `at`, taken from the result of a backward pass.
pub fn at(mut store: GradStore, at: &Var) -> Result<Tensor> {
    match store.remove(at) {
        Some(gradient) => Ok(gradient),
        None => bail!("no gradient reached the images"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    use crate::store::{Init, Scope};

    #[test]
    fn a_parameter_without_a_gradient_is_named() -> Result<()> {
        let scope = Scope::init(0, &Device::Cpu);
        let used = scope.get("used", 3, Init::Ones)?;
        scope.get("forgotten", 3, Init::Ones)?;
        let error = gradients(used.sum_all()?.backward()?, scope.finish().iter()).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("forgotten") && !text.contains("used"),
            "{text}"
        );
        Ok(())
    }

    #[test]
    fn accumulation_adds_name_by_name() -> Result<()> {
        let one = |x: f32| -> Result<Gradients> {
            let tensor = Tensor::full(x, 2, &Device::Cpu)?;
            Ok(Gradients::from([("a".to_string(), tensor)]))
        };
        let mut sum = one(1.0)?;
        accumulate(&mut sum, one(2.5)?)?;
        assert_eq!(sum["a"].to_vec1::<f32>()?, [3.5, 3.5]);
        Ok(())
    }
}
