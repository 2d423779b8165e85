//! Adam and AdamW with a moving average of the weights, in place.
//!
//! As PyTorch: p ← p·(1 − lr·wd); m ← m + (1−β₁)(g − m); v ← β₂v + (1−β₂)g²;
//! p ← p − lr/(1−β₁ⁿ) · m / (√v/√(1−β₂ⁿ) + ε), n the step counted from 1, g the gradient times `grad_scale`.
//! The average, in the same pass: ema ← ema + (1−decay)(p − ema). All tensors of one shape, f32.

mod reference;

use candle_core::{DType, Result, Tensor, Var, bail};

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
    let others = [
        Some(grad),
        Some(m.as_tensor()),
        Some(v.as_tensor()),
        ema.map(|e| e.as_tensor()),
    ];
    for tensor in others.into_iter().flatten() {
        if tensor.shape() != param.shape() {
            bail!(
                "adam_step: parameter {:?}, but a gradient, moment or average {:?}",
                param.shape(),
                tensor.shape()
            );
        }
        if tensor.dtype() != DType::F32 || param.dtype() != DType::F32 {
            bail!(
                "adam_step: f32 only, found {:?} and {:?}",
                param.dtype(),
                tensor.dtype()
            );
        }
    }
    if step.step == 0 {
        bail!("adam_step: steps are counted from 1");
    }
    if ema.is_some() != step.ema_decay.is_some() {
        bail!("adam_step: a moving average and its decay belong together");
    }
    reference::adam_step(param, &grad.detach(), m, v, ema, step)
}

/// √Σg² over all gradients, in the order given (by name, for equal bits), summed in f64.
pub fn global_norm<'a>(grads: impl IntoIterator<Item = &'a Tensor>) -> Result<f64> {
    let mut total = 0f64;
    for grad in grads {
        total += grad
            .to_dtype(DType::F64)?
            .sqr()?
            .sum_all()?
            .to_scalar::<f64>()?;
    }
    Ok(total.sqrt())
}
