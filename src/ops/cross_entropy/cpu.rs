//! Cross-entropy on the CPU: a row's maximum, sum and loss are computed while the row is in cache;
//! its log-sum is kept for the gradient.

use crate::ops::{blocks, simd, slices};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use std::sync::{Arc, OnceLock};

pub(super) struct CrossEntropy {
    /// For each row: log Σ exp(logits), and whether the target is the first of the largest.
    pub rows: Arc<OnceLock<Vec<Row>>>,
}

#[derive(Clone, Copy)]
pub(super) struct Row {
    log_sum: f32,
    loss: f32,
    pub correct: bool,
}

impl CustomOp2 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn cpu_fwd(
        &self,
        logits: &CpuStorage,
        layout: &Layout,
        targets: &CpuStorage,
        targets_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (r, k) = layout.shape().dims2()?;
        let logits = slices::of(logits, layout)?;
        let targets = &targets.as_slice::<u32>()?[targets_layout.start_offset()..][..r];
        if let Some(wrong) = targets.iter().find(|&&t| t as usize >= k) {
            bail!("cross_entropy: target {wrong}, expected a class under {k}");
        }
        let rows = blocks::map(r, k, &|row| {
            of_row(&logits[row * k..][..k], targets[row] as usize)
        });
        let loss = rows.iter().map(|row| row.loss).collect();
        self.rows.get_or_init(|| rows);
        Ok((CpuStorage::F32(loss), Shape::from(r)))
    }

    fn bwd(
        &self,
        logits: &Tensor,
        targets: &Tensor,
        _: &Tensor,
        dloss: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let k = logits.dim(1)?;
        let targets = targets.to_vec1::<u32>()?;
        let Some(rows) = self.rows.get() else {
            bail!("cross_entropy: the gradient was requested before the loss");
        };
        let dlogits = slices::read([logits, dloss], |[logits, dloss]| {
            blocks::filled(logits.len(), k, &|first, block| {
                let logits = &logits[first * k..][..block.len()];
                let pairs = block.chunks_exact_mut(k).zip(logits.chunks_exact(k));
                for (row, (d, logits)) in (first..).zip(pairs) {
                    let (log_sum, scale) = (rows[row].log_sum, dloss[row]);
                    simd::vectorized(
                        #[inline(always)]
                        || {
                            for (d, &logit) in d.iter_mut().zip(logits) {
                                *d = scale * simd::exp(logit - log_sum);
                            }
                        },
                    );
                    d[targets[row] as usize] -= scale;
                }
            })
        })?;
        Ok((slices::gradient(logits, dlogits)?, None))
    }
}

fn of_row(logits: &[f32], target: usize) -> Row {
    let (max, sum) = simd::vectorized(
        #[inline(always)]
        || {
            let max = simd::max(logits);
            (max, simd::sum(logits, |x| simd::exp(x - max)))
        },
    );
    let log = sum.ln();
    Row {
        log_sum: max + log,
        loss: log + (max - logits[target]),
        correct: logits[target] == max && !logits[..target].contains(&max),
    }
}
