//! Gradients as an ordered map from parameter name to tensor (docs/design.md, decision 5). Only
//! this module knows how they were computed.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var, bail};

use crate::ops::add;
use crate::world::World;

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

/// The sum of gradients over a step's micro-batches, which the processes of a world compute in
/// turn: each call of [`Sum::add`] adds one from every process, in their order, to what there is.
/// So the sum has the same bits however many processes share the micro-batches. Processes on GPUs
/// add up their own, and then these from GPU to GPU.
pub struct Sum<'a> {
    world: &'a World,
    /// At rank 0 the sum; elsewhere this process's last gradients.
    so_far: Gradients,
}

impl<'a> Sum<'a> {
    pub fn new(world: &'a World) -> Self {
        Self {
            world,
            so_far: Gradients::new(),
        }
    }

    /// Adds one micro-batch of every process.
    pub fn add(&mut self, gradients: Gradients) -> crate::error::Result<()> {
        #[cfg(feature = "cuda")]
        if self.world.has_gpus() {
            return Ok(accumulate(&mut self.so_far, gradients)?);
        }
        if !self.world.is_first() {
            self.so_far.clear();
        }
        accumulate(&mut self.so_far, gradients)?;
        self.with_values(|world, values| world.sum_at_first(values))
    }

    /// The sum, at every process.
    pub fn finish(mut self) -> crate::error::Result<Gradients> {
        #[cfg(feature = "cuda")]
        if self.world.has_gpus() {
            let (names, own): (Vec<_>, Vec<_>) = self.so_far.into_iter().unzip();
            let sums = self.world.sum_tensors(&own.iter().collect::<Vec<_>>())?;
            return Ok(names.into_iter().zip(sums).collect());
        }
        self.with_values(|world, values| world.copy_from_first(values))?;
        Ok(self.so_far)
    }

    /// Replaces the values of each gradient by what `exchange` makes of them, name by name.
    fn with_values(
        &mut self,
        exchange: impl Fn(&World, &mut [f32]) -> crate::error::Result<()>,
    ) -> crate::error::Result<()> {
        if self.world.size() == 1 {
            return Ok(());
        }
        for gradient in self.so_far.values_mut() {
            let mut values = gradient.flatten_all()?.to_vec1::<f32>()?;
            exchange(self.world, &mut values)?;
            *gradient = Tensor::from_vec(values, gradient.shape(), gradient.device())?;
        }
        Ok(())
    }
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
