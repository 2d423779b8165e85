//! The last step of sums on a GPU, over the partial sums of a kernel's blocks, in a fixed order.

use candle_core::Result;

use super::cuda::{Gpu, Output, launch};

/// Σ of the blocks' sums, times `scale`: one value.
pub(super) fn of_blocks(gpu: &Gpu, partials: &Output<f32>, scale: f64) -> Result<Output<f32>> {
    let (partials, scale) = (partials.view(), scale as f32);
    let mut sum = Output::<f32>::new(gpu.device(), 1)?;
    let blocks = partials.len() as i32;
    // SAFETY: `blocks` values, and one.
    unsafe {
        launch!(gpu, "sums", "sum_blocks", (1, 1, 1), 256, 0; partials, blocks, scale, sum.view_mut())?
    };
    Ok(sum)
}

/// Sums each column of `values` [rows,columns].
pub(super) fn of_rows(gpu: &Gpu, values: &Output<f32>, columns: usize) -> Result<Output<f32>> {
    let values = values.view();
    assert!(values.len().is_multiple_of(columns));
    let (rows, blocks) = (values.len() / columns, columns.div_ceil(32) as u32);
    let mut sums = Output::<f32>::new(gpu.device(), columns)?;
    // SAFETY: rows·columns values, and one per column.
    unsafe {
        launch!(gpu, "sums", "sum_rows", (blocks, 1, 1), 256, 0;
            values, sums.view_mut(), rows as i32, columns as i32)?
    };
    Ok(sums)
}
