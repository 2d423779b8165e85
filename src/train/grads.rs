//! Gradients as an ordered map from parameter name to tensor (docs/design.md, decision 5). Only
//! this module knows how they were computed.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, Var, bail};

use crate::ops::tape::apply1;
use crate::store::Params;

/// Gradients by parameter name.
pub type Gradients = BTreeMap<String, Tensor>;

/// The gradient of every parameter, taken from the result of a backward pass.
///
/// Errors: a parameter without a gradient, by name (an operation dropped it, or the loss does not
/// depend on it).
pub fn gradients(mut store: GradStore, params: &Params) -> Result<Gradients> {
    let (mut found, mut missing) = (Gradients::new(), Vec::new());
    for (name, var) in params.iter() {
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
            Some(so_far) => (so_far + gradient)?,
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

/// A scalar 0 whose gradient with respect to `x` is `gradient`: continues a backward pass that was
/// cut at `x`.
///
/// `x` and `gradient` have the same shape; the upstream gradient (1 if the loss is a sum) scales
/// it.
pub fn seed(x: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    if x.shape() != gradient.shape() {
        bail!(
            "seed: expected a gradient of shape {:?}, found {:?}",
            x.shape(),
            gradient.shape()
        );
    }
    apply1(x, Seed(gradient.detach()))
}

struct Seed(Tensor);

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &candle_core::CudaStorage,
        _: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        use candle_core::backend::{BackendDevice, BackendStorage};
        let shape = Shape::from(());
        let zero = storage
            .device()
            .zeros_impl(&shape, candle_core::DType::F32)?;
        Ok((zero, shape))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, upstream: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.broadcast_mul(upstream)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    use crate::store::{Init, Scope};

    #[test]
    fn a_seed_continues_a_cut_backward_pass() -> Result<()> {
        let x = Var::new(&[[0.5f32, -1.0, 2.0]], &Device::Cpu)?;
        let y = (x.as_tensor() * 3.0)?.sqr()?;
        let whole = y.exp()?.sum_all()?.backward()?;
        let cut = Var::from_tensor(&y.detach())?;
        let upper = cut.exp()?.sum_all()?.backward()?;
        let lower = seed(&y, upper.get(&cut).expect("the cut has a gradient"))?.backward()?;
        let vectors = [whole, lower].map(|s| s.get(&x).expect("x has a gradient").clone());
        assert_eq!(vectors[0].to_vec2::<f32>()?, vectors[1].to_vec2::<f32>()?);
        Ok(())
    }

    #[test]
    fn a_parameter_without_a_gradient_is_named() -> Result<()> {
        let scope = Scope::init(0, &Device::Cpu);
        let used = scope.get("used", 3, Init::Ones)?;
        scope.get("forgotten", 3, Init::Ones)?;
        let error = gradients(used.sum_all()?.backward()?, &scope.finish()).unwrap_err();
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
