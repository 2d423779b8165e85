//! Adam and AdamW with a moving average of the weights, in place.
//!
//! As PyTorch: p ← p·(1 − lr·wd); m ← m + (1−β₁)(g − m); v ← β₂v + (1−β₂)g²;
//! p ← p − lr/(1−β₁ⁿ) · m / (√v/√(1−β₂ⁿ) + ε), n the step counted from 1, g the gradient times `grad_scale`.
//! The average, in the same pass: ema ← ema + (1−decay)(p − ema). All tensors of one shape, f32.

mod cpu;
mod reference;
#[cfg(test)]
mod tests;

use candle_core::{DType, Result, Tensor, Var, bail};

use super::check;

/// One step's numbers, the same for all parameters but for `weight_decay`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamStep {
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// Decoupled; 0 is Adam.
    pub weight_decay: f64,
    /// Counted from 1.
    pub step: u64,
    /// Multiplies the gradient: clipping, averaging over micro-batches.
    pub grad_scale: f32,
    /// Decay of the moving average, where there is one.
    pub ema_decay: Option<f32>,
}

impl AdamStep {
    /// 1 − β₁ⁿ and 1 − β₂ⁿ
    fn corrections(&self) -> (f64, f64) {
        let n = self.step as f64;
        (1.0 - self.beta1.powf(n), 1.0 - self.beta2.powf(n))
    }
}

/// One step of `param` from its gradient; `m` and `v` are its moments, `ema` its moving average.
///
/// No two of the variables may share their storage: each is locked while all are written.
/// Errors: shapes or types that differ; a step of 0; `ema` without `ema_decay` or the reverse.
pub fn adam_step(
    param: &Var,
    grad: &Tensor,
    m: &Var,
    v: &Var,
    ema: Option<&Var>,
    step: &AdamStep,
) -> Result<()> {
    check::dtype("adam_step", "the parameter", param, DType::F32)?;
    let others = [
        ("the gradient", Some(grad)),
        ("the first moment", Some(m.as_tensor())),
        ("the second moment", Some(v.as_tensor())),
        ("the average", ema.map(|ema| ema.as_tensor())),
    ];
    for (name, tensor) in others {
        if let Some(tensor) = tensor {
            check::shape("adam_step", name, tensor, param.dims())?;
            check::dtype("adam_step", name, tensor, DType::F32)?;
        }
    }
    if step.step == 0 {
        bail!("adam_step: steps are counted from 1");
    }
    if ema.is_some() != step.ema_decay.is_some() {
        bail!("adam_step: a moving average and its decay belong together");
    }
    if param.device().is_cpu() {
        cpu::adam_step(param, grad, m, v, ema, step)
    } else {
        reference::adam_step(param, &grad.detach(), m, v, ema, step)
    }
}

/// √Σg² over all gradients as an f64 scalar on their device, summed in f64 in the order given: by name, for equal bits.
///
/// Errors: a gradient that is not f32; no gradient.
pub fn global_norm<'a>(grads: impl IntoIterator<Item = &'a Tensor>) -> Result<Tensor> {
    let mut total: Option<Tensor> = None;
    for grad in grads {
        check::dtype("global_norm", "a gradient", grad, DType::F32)?;
        let squares = if grad.device().is_cpu() {
            Tensor::new(cpu::sum_of_squares(grad)?, grad.device())?
        } else {
            grad.to_dtype(DType::F64)?.sqr()?.sum_all()?
        };
        total = Some(match total {
            Some(total) => (total + squares)?,
            None => squares,
        });
    }
    match total {
        Some(total) => total.sqrt(),
        None => bail!("global_norm: no gradients"),
    }
}
