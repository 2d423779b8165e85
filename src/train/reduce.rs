//! Every mean or sum over the whole batch passes through here: gradients, logged metrics, the
//! gradients whose norms give λ, code counts, BatchNorm's moments. A single process holds the whole
//! batch, so each function is the identity; with several processes each body becomes an all-reduce.

use candle_core::{Result, Tensor};

use super::grads::Gradients;
use super::step_metrics::StepMetrics;

/// Mean over processes of a mean over each process's part of the batch.
pub fn mean(value: Tensor) -> Result<Tensor> {
    Ok(value)
}

/// Like [`mean`], for each name.
pub fn gradients(gradients: Gradients) -> Result<Gradients> {
    Ok(gradients)
}

/// Sums and weights, added over all processes.
pub fn metrics(metrics: StepMetrics) -> Result<StepMetrics> {
    Ok(metrics)
}

/// Sum over processes of counts over each process's part of the batch.
pub fn counts(counts: Vec<Vec<u64>>) -> Result<Vec<Vec<u64>>> {
    Ok(counts)
}

/// The same of counts that fade, which are sums of them with equal factors.
#[cfg(feature = "cuda")]
pub fn fading_counts(counts: Vec<f32>) -> Result<Vec<f32>> {
    Ok(counts)
}
