//! Cross-entropy from logits, row by row, and whether the target is the most likely class.
//!
//! loss_r = log Σ_k exp(logits_rk) − logits_r,target; logits [R,K], targets u32 [R] → loss [R],
//! correct u32 [R]. Gradient to the logits: upstream_r·(softmax(logits_r) − onehot(target_r)).

#[cfg(feature = "cuda")]
pub mod check;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod reference;
#[cfg(test)]
mod tests;

use super::{check as shapes, slices, tape};
use candle_core::{DType, Result, Tensor, bail};
use std::sync::{Arc, OnceLock};

/// One value per row.
pub struct CrossEntropy {
    /// [R], differentiable.
    pub loss: Tensor,
    /// u32 [R]: 1 if the target has the largest logit (the smallest index wins a tie), else 0.
    pub correct: Tensor,
}

/// logits [R,K], targets u32 [R] with values below K.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<CrossEntropy> {
    let [r, k] = shapes::dims("cross_entropy", "logits", logits, "[R,K]")?;
    shapes::shape("cross_entropy", "targets", targets, &[r])?;
    shapes::dtype("cross_entropy", "targets", targets, DType::U32)?;
    if k == 0 {
        bail!("cross_entropy: logits has shape [{r}, 0], expected at least one class");
    }
    if slices::are_f32_on_cpu(&[logits]) && targets.device().is_cpu() {
        let rows = Arc::new(OnceLock::new());
        let op = cpu::CrossEntropy { rows: rows.clone() };
        let loss = tape::apply2(logits, targets, op)?;
        let rows: &[cpu::Row] = rows.get().map_or(&[], |rows| rows);
        let correct = rows.iter().map(|row| u32::from(row.correct));
        let correct = Tensor::from_iter(correct, logits.device())?;
        return Ok(CrossEntropy { loss, correct });
    }
    let correct = reference::cross_entropy(&logits.detach(), targets)?.correct;
    let targets = targets.clone();
    let loss = tape::plain([logits], move |[logits]| {
        Ok(reference::cross_entropy(logits, &targets)?.loss)
    })?;
    Ok(CrossEntropy { loss, correct })
}
