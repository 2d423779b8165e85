//! The GPU version: blocks sum parts of the rows, then the parts are added.

use candle_core::{DType, Result, Tensor, bail};
use half::bf16;

use super::known;
use crate::ops::cuda::{Element, Gpu, Output, View, launch};
use crate::ops::sums;

/// Blocks that sum parts of the rows; the parts depend on the shape alone.
const BLOCKS: usize = 1056;
/// Minimum number of rows per part.
const ROWS: usize = 64;

/// `gradient` [..,C] of f32 or bf16 → f32 [C].
pub fn column_sums(gpu: &Gpu, gradient: &Tensor) -> Result<Tensor> {
    if let Some(sums) = known::recall(gradient) {
        return Ok(sums);
    }
    let sums = match gradient.dtype() {
        DType::F32 => computed::<f32>(gpu, gradient)?,
        DType::BF16 => computed::<bf16>(gpu, gradient)?,
        other => bail!("column_sums: {other:?} has no kernel"),
    };
    known::remember(gradient, &sums);
    Ok(sums)
}

fn computed<T: Element>(gpu: &Gpu, rows: &Tensor) -> Result<Tensor> {
    let (rows, width) = (View::<T>::of(rows)?, rows.dim(candle_core::D::Minus1)?);
    let count = rows.len() / width;
    let (across, kernel) = match width.is_multiple_of(8) {
        true => (width.div_ceil(64), "sum_part8"),
        false => (width.div_ceil(32), "sum_part"),
    };
    let each = count.div_ceil((BLOCKS / across).max(1)).max(ROWS);
    let parts = count.div_ceil(each);
    let mut partial = Output::<f32>::new(gpu.device(), parts * width)?;
    let grid = (across as u32, parts as u32, 1);
    let name = format!("{kernel}_{}", T::NAME);
    // SAFETY: count·width and parts·width elements.
    unsafe {
        launch!(early gpu, "column_sums", &name, grid, 256, 0;
            rows, partial.view_mut(), count as i64, width as i32, each as i64)?;
    }
    let sums = match parts {
        1 => partial,
        _ => sums::of_rows(gpu, &partial, width)?,
    };
    Ok(sums.tensor(width))
}
