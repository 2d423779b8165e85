//! The same step in candle operations: the reference, and the fallback where there is no kernel.

use candle_core::{Result, Tensor, Var};

use super::AdamStep;

pub fn adam_step(
    param: &Var,
    grad: &Tensor,
    m: &Var,
    v: &Var,
    ema: Option<&Var>,
    step: &AdamStep,
) -> Result<()> {
    let (correction1, correction2) = step.corrections();
    let grad = (grad * f64::from(step.grad_scale))?;
    let p = (param.as_detached_tensor() * (1.0 - step.lr * step.weight_decay))?;
    let m_old = m.as_detached_tensor();
    let m_new = (&m_old + ((&grad - &m_old)? * (1.0 - step.beta1))?)?;
    let v_new = ((v.as_detached_tensor() * step.beta2)? + (grad.sqr()? * (1.0 - step.beta2))?)?;
    let denominator = ((v_new.sqrt()? / correction2.sqrt())? + step.eps)?;
    let p = (p - ((&m_new / denominator)? * (step.lr / correction1))?)?;
    if let (Some(ema), Some(decay)) = (ema, step.ema_decay) {
        let old = ema.as_detached_tensor();
        ema.set(&(&old + ((&p - &old)? * f64::from(1.0 - decay))?)?)?;
    }
    param.set(&p)?;
    m.set(&m_new)?;
    v.set(&v_new)
}
