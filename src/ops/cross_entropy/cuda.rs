//! The GPU version on bf16 logits in preallocated buffers (`kernel.cu`), with the gradient in the
//! same pass.

use candle_core::Result;
use half::bf16;

use crate::ops::cuda::{Gpu, View, ViewMut, launch};

/// Loss f32 and hit u32 of every row of logits [rows, K] with targets below K; the logits become
/// their gradient times `scale`. Sizes [rows, K], K a multiple of 8 up to 16384.
pub fn cross_entropy(
    gpu: &Gpu,
    [rows, k]: [usize; 2],
    logits: ViewMut<bf16>,
    targets: View<u32>,
    loss: ViewMut<f32>,
    hits: ViewMut<u32>,
    scale: f32,
) -> Result<()> {
    let kernel = match k {
        0..=2048 => "cross_entropy_1",
        2049..=4096 => "cross_entropy_2",
        4097..=8192 => "cross_entropy_4",
        _ => "cross_entropy_8",
    };
    assert!(
        k.is_multiple_of(8) && k <= 16384,
        "the cross-entropy of {k} classes"
    );
    // SAFETY: the arguments are the kernel's, and views of the sizes that it walks over.
    unsafe {
        launch!(gpu, "cross_entropy", kernel, (rows as u32, 1, 1), 256, 0;
            logits.first(rows * k), targets.first(rows), loss.first(rows), hits.first(rows),
            k as i32, scale, 1i32)
    }
}
