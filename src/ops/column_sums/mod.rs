//! Sums over the rows of [R,C] on a GPU, in f32 and in a fixed order: a bias's gradient.

use candle_core::Result;

use super::cuda::{Element, Gpu, Output, View, launch};

/// Blocks that sum parts of the rows; the parts depend on the shape alone.
const BLOCKS: usize = 1056;
/// Minimum number of rows per part.
const ROWS: usize = 64;

/// `rows` [R,`width`] of f32 or bf16 → f32 [width].
pub fn column_sums<T: Element>(gpu: &Gpu, rows: View<T>, width: usize) -> Result<Output<f32>> {
    let count = rows.len() / width;
    assert_eq!(rows.len(), count * width);
    let each = count.div_ceil((BLOCKS / across(width).0).max(1)).max(ROWS);
    let parts = count.div_ceil(each);
    let mut partial = sums(gpu, rows, (count, each), width)?;
    if parts > 1 {
        partial = sums(gpu, partial.view(), (parts, parts), width)?;
    }
    Ok(partial)
}

/// Number of blocks along the columns, and the kernel's name.
fn across(width: usize) -> (usize, &'static str) {
    match width.is_multiple_of(8) {
        true => (width.div_ceil(64), "sum_part8"),
        false => (width.div_ceil(32), "sum_part"),
    }
}

/// One partial sum for every `each` of `count` rows: [parts,width].
fn sums<T: Element>(
    gpu: &Gpu,
    rows: View<T>,
    (count, each): (usize, usize),
    width: usize,
) -> Result<Output<f32>> {
    let parts = count.div_ceil(each);
    let mut partial = Output::<f32>::new(gpu.device(), parts * width)?;
    let (across, kernel) = across(width);
    let grid = (across as u32, parts as u32, 1);
    let name = format!("{kernel}_{}", T::NAME);
    // SAFETY: count·width and parts·width elements.
    unsafe {
        launch!(gpu, "column_sums", &name, grid, 256, 0;
            rows, partial.view_mut(), count as i64, width as i32, each as i64)?;
    }
    Ok(partial)
}
