//! Adam and AdamW with a moving average of the weights, in place.
//!
//! As in PyTorch: p ← p·(1 − lr·wd); m ← m + (1−β₁)(g − m); v ← β₂v + (1−β₂)g²; p ← p − lr/(1−β₁ⁿ)
//! · m / (√v/√(1−β₂ⁿ) + ε), where n is the step counted from 1 and g the gradient times
//! `grad_scale`. The average is updated in the same pass: ema ← ema + (1−decay)(p − ema). All
//! tensors have the same shape, in f32.

#[cfg(feature = "cuda")]
pub mod check;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
pub mod flat;
mod reference;
#[cfg(test)]
mod tests;

use candle_core::{DType, Result, Tensor, Var, bail};

use super::check as shapes;

/// The constants of one step, the same for all parameters except `weight_decay`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamStep {
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// Decoupled weight decay; 0 gives Adam.
    pub weight_decay: f64,
    /// Counted from 1.
    pub step: u64,
    /// Multiplies the gradient: clipping, averaging over micro-batches.
    pub grad_scale: f32,
    /// Decay of the moving average, if there is one.
    pub ema_decay: Option<f32>,
}

impl AdamStep {
    /// 1 − β₁ⁿ and 1 − β₂ⁿ
    fn corrections(&self) -> (f64, f64) {
        let n = self.step as f64;
        (1.0 - self.beta1.powf(n), 1.0 - self.beta2.powf(n))
    }
}

/// A parameter, its gradient, its moments `m` and `v`, and its moving average if there is one.
#[derive(Clone, Copy)]
pub struct Trained<'a> {
    pub param: &'a Var,
    pub grad: &'a Tensor,
    pub m: &'a Var,
    pub v: &'a Var,
    pub ema: Option<&'a Var>,
    /// Decoupled weight decay; 0 gives Adam.
    pub weight_decay: f64,
}

impl Trained<'_> {
    fn check(&self, step: &AdamStep) -> Result<()> {
        shapes::dtype("adam_step", "the parameter", self.param, DType::F32)?;
        let others = [
            ("the gradient", Some(self.grad)),
            ("the first moment", Some(self.m.as_tensor())),
            ("the second moment", Some(self.v.as_tensor())),
            ("the average", self.ema.map(|ema| ema.as_tensor())),
        ];
        for (name, tensor) in others {
            if let Some(tensor) = tensor {
                shapes::shape("adam_step", name, tensor, self.param.dims())?;
                shapes::dtype("adam_step", name, tensor, DType::F32)?;
            }
        }
        if step.step == 0 {
            bail!("adam_step: steps are counted from 1");
        }
        if self.ema.is_some() != step.ema_decay.is_some() {
            bail!("adam_step: a moving average and its decay belong together");
        }
        Ok(())
    }
}

/// One step of `param` from its gradient; `m` and `v` are its moments, `ema` its moving average.
///
/// No two of the variables may share their storage: each is locked while all are written. Errors:
/// different shapes or dtypes; a step of 0; `ema` without `ema_decay` or the reverse.
pub fn adam_step(
    param: &Var,
    grad: &Tensor,
    m: &Var,
    v: &Var,
    ema: Option<&Var>,
    step: &AdamStep,
) -> Result<()> {
    let weight_decay = step.weight_decay;
    let trained = Trained {
        param,
        grad,
        m,
        v,
        ema,
        weight_decay,
    };
    adam_step_all(&[trained], step)
}

/// [`adam_step`] for many parameters, each with its own weight decay instead of `step`'s; on a GPU
/// in few launches.
pub fn adam_step_all(all: &[Trained], step: &AdamStep) -> Result<()> {
    for trained in all {
        trained.check(step)?;
    }
    #[cfg(feature = "cuda")]
    if all.iter().all(|t| t.param.device().is_cuda()) {
        return cuda::adam_step_all(all, step);
    }
    for t in all {
        let step = AdamStep {
            weight_decay: t.weight_decay,
            ..*step
        };
        if t.param.device().is_cpu() {
            cpu::adam_step(t.param, t.grad, t.m, t.v, t.ema, &step)?;
        } else {
            reference::adam_step(t.param, &t.grad.detach(), t.m, t.v, t.ema, &step)?;
        }
    }
    Ok(())
}

/// √Σg² over all gradients, as an f64 scalar on their device. Summed in f64 in the given order (by
/// name), so that results are bit-identical.
///
/// Errors: a gradient that is not f32; no gradient.
pub fn global_norm<'a>(grads: impl IntoIterator<Item = &'a Tensor>) -> Result<Tensor> {
    let grads: Vec<&Tensor> = grads.into_iter().collect();
    for grad in &grads {
        shapes::dtype("global_norm", "a gradient", grad, DType::F32)?;
    }
    let Some(first) = grads.first() else {
        bail!("global_norm: no gradients");
    };
    #[cfg(feature = "cuda")]
    if grads.iter().all(|grad| grad.device().is_cuda()) {
        return cuda::norm(&grads);
    }
    let mut total = 0f64;
    for grad in &grads {
        total += match grad.device().is_cpu() {
            true => cpu::sum_of_squares(grad)?,
            false => grad.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar()?,
        };
    }
    Tensor::new(total.sqrt(), first.device())
}
