//! Sums over the rows of [R,C] on a GPU, in f32 and in a fixed order: a bias's gradient.

use candle_core::Result;

use super::cuda::{Element, Gpu, Output, View, launch};
use super::sums;

/// Parts that the rows are added up in at most: the shape alone fixes them.
const PARTS: usize = 1024;
/// Rows a part at least.
const ROWS: usize = 64;

/// `rows` [R,`width`] of f32 or bf16 → f32 [width].
pub fn column_sums<T: Element>(gpu: &Gpu, rows: View<T>, width: usize) -> Result<Output<f32>> {
    let count = rows.len() / width;
    assert_eq!(rows.len(), count * width);
    let each = count.div_ceil(PARTS).max(ROWS);
    let parts = count.div_ceil(each);
    let mut partial = Output::<f32>::new(gpu.device(), parts * width)?;
    let name = format!("sum_part_{}_{}", T::NAME, rows.vector(width));
    // SAFETY: count·width and parts·width elements.
    unsafe {
        launch!(gpu, "column_sums", &name, (parts as u32, 1, 1), 256, 0;
            rows, partial.view_mut(), count as i64, width as i32, each as i64)?;
    }
    match parts {
        1 => Ok(partial),
        _ => sums::of_rows(gpu, &partial, width),
    }
}
