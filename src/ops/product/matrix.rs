//! One product of two matrices on one thread: the only call of `gemm`, for gradients and whatever
//! has no panels.
//!
//! `gemm` 0.19 computes an element as one chain of multiply-adds over its terms in every kernel
//! that tiles both sides, whatever the tile and the instruction set, as long as there are at most
//! 512 terms (`kernel_params`) — but goes other ways for a result of a single row or column
//! (`gemv`): [`multiply`] is not used with those where it matters; and it sums a small result's
//! terms in lanes, whose number is the instruction set's, where they lie side by side on both
//! sides: [`multiply`] lays them out otherwise.

use std::ops::Range;

use gemm::Parallelism;

/// A matrix whose rows and columns lie at fixed distances.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct Matrix<'a> {
    values: &'a [f32],
    size: (usize, usize),
    strides: (usize, usize),
}

impl<'a> Matrix<'a> {
    /// `size` = (rows, columns) of `values`, at `strides` = (from row to row, from column to
    /// column).
    pub fn strided(values: &'a [f32], size: (usize, usize), strides: (usize, usize)) -> Self {
        assert!(values.len() >= extent(size, strides));
        Self {
            values,
            size,
            strides,
        }
    }

    /// Row after row.
    pub fn dense(values: &'a [f32], size: (usize, usize)) -> Self {
        Self::strided(values, size, (size.1, 1))
    }

    /// The numbers of rows and columns.
    pub fn size(self) -> (usize, usize) {
        self.size
    }

    /// Whether the elements of a row lie side by side.
    pub fn has_dense_rows(self) -> bool {
        self.strides.1 == 1
    }

    /// Row `i`, whose elements lie side by side.
    #[inline(always)]
    pub fn row(&self, i: usize) -> &'a [f32] {
        &self.values[i * self.strides.0..][..self.size.1]
    }

    /// Some rows and columns of it.
    pub fn part(self, rows: Range<usize>, columns: Range<usize>) -> Self {
        let from = rows.start * self.strides.0 + columns.start * self.strides.1;
        let size = (rows.len(), columns.len());
        Self::strided(&self.values[from..], size, self.strides)
    }

    /// The elements, row after row.
    pub fn elements(self) -> impl Iterator<Item = f32> {
        (0..self.size.0 * self.size.1).map(move |i| {
            let (row, column) = (i / self.size.1, i % self.size.1);
            self.values[row * self.strides.0 + column * self.strides.1]
        })
    }

    pub fn transposed(self) -> Self {
        Self {
            values: self.values,
            size: (self.size.1, self.size.0),
            strides: (self.strides.1, self.strides.0),
        }
    }
}

/// Elements from the first to the last.
fn extent(size: (usize, usize), strides: (usize, usize)) -> usize {
    match size {
        (0, _) | (_, 0) => 0,
        (rows, columns) => (rows - 1) * strides.0 + (columns - 1) * strides.1 + 1,
    }
}

/// Elements of a result that `gemm` takes for a small one.
const SMALL: usize = 256;

/// out = a·b, or out + a·b if `add`; rows of `out` lie `stride` apart.
pub(in crate::ops) fn multiply(out: &mut [f32], stride: usize, a: Matrix, b: Matrix, add: bool) {
    let (rows, columns) = (a.size.0, b.size.1);
    if rows * columns <= SMALL && columns > 1 && a.strides.1 == 1 && b.strides.0 == 1 {
        let dense: Vec<f32> = b.elements().collect();
        return multiply(out, stride, a, Matrix::dense(&dense, b.size), add);
    }
    assert_eq!(a.size.1, b.size.0);
    assert!(columns <= stride && out.len() >= extent((rows, columns), (stride, 1)));
    // SAFETY: the three matrices lie inside their slices (asserted here and where a `Matrix` is
    // made), the elements of `out` are distinct (columns ≤ stride), and `out` is borrowed
    // exclusively.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            a.size.1,
            out.as_mut_ptr(),
            1,
            stride as isize,
            add,
            a.values.as_ptr(),
            a.strides.1 as isize,
            a.strides.0 as isize,
            b.values.as_ptr(),
            b.strides.1 as isize,
            b.strides.0 as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
