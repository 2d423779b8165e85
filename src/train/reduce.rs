//! The one place through which everything passes that is a mean or a sum over the whole batch: gradients, the figures
//! of the log, the gradients whose norms make λ, code counts, BatchNorm's moments. One process holds the whole batch,
//! so each is the identity; a run over many replaces these bodies by an all-reduce.

use candle_core::{Result, Tensor};

use super::figures::Figures;
use super::grads::Gradients;

/// Mean over the processes of a mean over each one's part of the batch.
pub fn mean(value: Tensor) -> Result<Tensor> {
    Ok(value)
}

/// As [`mean`], name by name.
pub fn gradients(gradients: Gradients) -> Result<Gradients> {
    Ok(gradients)
}

/// Sums and weights of all processes, added up.
pub fn figures(figures: Figures) -> Result<Figures> {
    Ok(figures)
}

/// Sum over the processes of counts over each one's part of the batch.
pub fn counts(counts: Vec<Vec<u64>>) -> Result<Vec<Vec<u64>>> {
    Ok(counts)
}
