//! The last step of sums on a GPU, over the partial sums of a kernel's blocks, in a fixed order.

use candle_core::Result;

use super::cuda::{Gpu, Output, View, ViewMut, launch};

/// Columns that a block of `sum_rows` sums.
const COLUMNS: usize = 8;

/// Σ of the blocks' sums, times `scale`: one value.
pub(super) fn of_blocks(gpu: &Gpu, partials: &Output<f32>, scale: f64) -> Result<Output<f32>> {
    let (partials, scale) = (partials.view(), scale as f32);
    let mut sum = Output::<f32>::new(gpu.device(), 1)?;
    let blocks = partials.len() as i32;
    // SAFETY: `blocks` values, and one.
    unsafe {
        launch!(early gpu, "sums", "sum_blocks", (1, 1, 1), 256, 0; partials, blocks, scale, sum.view_mut())?
    };
    Ok(sum)
}

/// Sums each column of `values` [rows,columns].
pub(super) fn of_rows(gpu: &Gpu, values: &Output<f32>, columns: usize) -> Result<Output<f32>> {
    let mut sums = Output::new(gpu.device(), columns)?;
    sum_rows(gpu, Matrix::new(values, &mut sums), None)?;
    Ok(sums)
}

/// [`of_rows`] of two matrices and their columns, in one launch.
pub(super) fn of_rows_of_two(
    gpu: &Gpu,
    (first, columns): (&Output<f32>, usize),
    (second, more_columns): (&Output<f32>, usize),
) -> Result<(Output<f32>, Output<f32>)> {
    let mut sums = Output::new(gpu.device(), columns)?;
    let mut more = Output::new(gpu.device(), more_columns)?;
    let with = Matrix::new(second, &mut more);
    sum_rows(gpu, Matrix::new(first, &mut sums), Some(with))?;
    Ok((sums, more))
}

/// Values [rows,columns], and where the columns' sums go.
struct Matrix<'a> {
    values: View<'a, f32>,
    sums: ViewMut<'a, f32>,
}

impl<'a> Matrix<'a> {
    fn new(values: &'a Output<f32>, sums: &'a mut Output<f32>) -> Self {
        let (values, sums) = (values.view(), sums.view_mut());
        assert!(values.len().is_multiple_of(sums.len()));
        Self { values, sums }
    }

    fn columns(&self) -> usize {
        self.sums.len()
    }

    fn rows(&self) -> usize {
        self.values.len() / self.columns()
    }
}

fn sum_rows(gpu: &Gpu, first: Matrix, second: Option<Matrix>) -> Result<()> {
    let size = |matrix: &Matrix| (matrix.rows(), matrix.columns());
    let (rows, columns) = size(&first);
    let (more_rows, more_columns) = second.as_ref().map_or((0, 0), size);
    let blocks = columns.div_ceil(COLUMNS) + more_columns.div_ceil(COLUMNS);
    let (more, more_sums) = second.map(|m| (m.values, m.sums)).unzip();
    // SAFETY: rows·columns values of each matrix, and one sum per column.
    unsafe {
        launch!(early gpu, "sums", "sum_rows", (blocks as u32, 1, 1), 512, 0;
            first.values, first.sums, rows as i32, columns as i32, more, more_sums,
            more_rows as i32, more_columns as i32)
    }
}
