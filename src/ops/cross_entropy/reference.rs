//! Cross-entropy in plain candle operations.

use super::CrossEntropy;
use candle_core::{DType, Result, Tensor};

pub(super) fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<CrossEntropy> {
    let max = logits.detach().max_keepdim(1)?;
    let shifted = logits.broadcast_sub(&max)?;
    let log_sum = shifted.exp()?.sum(1)?.log()?;
    let chosen = shifted.gather(&targets.unsqueeze(1)?, 1)?.squeeze(1)?;
    Ok(CrossEntropy {
        loss: (log_sum - chosen)?,
        correct: logits.argmax(1)?.eq(targets)?.to_dtype(DType::U32)?,
    })
}
