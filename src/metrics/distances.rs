//! Squared distances between all pairs of two sets of rows, a block at a time: ‖u‖² − 2·u·v + ‖v‖²,
//! at least 0.
//!
//! In f64 a distance is exact to 1e-12 of the norms, so that equal features have distance 0 and
//! comparisons do not depend on the summation order of matmuls. ADM's evaluator computes in f16:
//! [`Arithmetic::Half`] rounds at the same places.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, get_global_parallelism};
use half::f16;

use super::features::Rows;

/// A distance below this fraction of the norms is rounding error.
const ROUNDING: f64 = 1e-11;

/// How distances are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Arithmetic {
    #[default]
    Exact,
    /// Features and results rounded to f16, sums in f32, like the ADM evaluator on a GPU.
    Half,
}

/// Rows prepared for matmuls.
pub struct Points<'a> {
    rows: &'a Rows,
    arithmetic: Arithmetic,
    /// ‖u‖².
    norms: Vec<f64>,
}

impl<'a> Points<'a> {
    pub fn new(rows: &'a Rows, arithmetic: Arithmetic) -> Self {
        let norm = |row: &[f32]| match arithmetic {
            Arithmetic::Exact => row.iter().map(|&x| f64::from(x).powi(2)).sum(),
            Arithmetic::Half => {
                let squares = row.iter().map(|&x| half(half(x).powi(2)));
                f64::from(half(squares.sum()))
            }
        };
        Self {
            norms: rows.iter().map(norm).collect(),
            rows,
            arithmetic,
        }
    }

    pub fn count(&self) -> usize {
        self.rows.count()
    }

    /// Whether half precision can represent every distance from `other`'s points. On overflow,
    /// ADM's evaluator falls back to f32.
    pub fn fit_in_half(&self, other: &Self) -> bool {
        let largest = |norms: &[f64]| norms.iter().copied().fold(0.0, f64::max);
        let (a, b) = (largest(&self.norms), largest(&other.norms));
        a.is_finite() && b.is_finite() && 2.0 * (a + b) < f64::from(f16::MAX)
    }

    /// The distances between `range` of these points (rows) and `others` of `other` (columns).
    pub fn distances(&self, range: Range<usize>, other: &Self, others: Range<usize>) -> Mat<f64> {
        let (u, v) = (&self.norms[range.clone()], &other.norms[others.clone()]);
        match self.arithmetic {
            Arithmetic::Exact => {
                let products = products(
                    &self.values(range, f64::from),
                    &other.values(others, f64::from),
                    self.rows.width,
                );
                Mat::from_fn(u.len(), v.len(), |i, j| {
                    let distance = u[i] - 2.0 * products[(i, j)] + v[j];
                    if distance < ROUNDING * (u[i] + v[j]) {
                        0.0
                    } else {
                        distance
                    }
                })
            }
            Arithmetic::Half => {
                let products = products(
                    &self.values(range, half),
                    &other.values(others, half),
                    self.rows.width,
                );
                Mat::from_fn(u.len(), v.len(), |i, j| {
                    let twice = half(2.0 * half(products[(i, j)]));
                    let distance = half(half(u[i] as f32 - twice) + v[j] as f32);
                    f64::from(distance.max(0.0))
                })
            }
        }
    }

    fn values<T>(&self, range: Range<usize>, as_number: impl Fn(f32) -> T) -> Vec<T> {
        let width = self.rows.width;
        let values = &self.rows.values[range.start * width..range.end * width];
        values.iter().map(|&x| as_number(x)).collect()
    }
}

fn half(x: f32) -> f32 {
    f16::from_f32(x).to_f32()
}

/// u·vᵀ.
fn products<T: faer::traits::ComplexField + faer::traits::RealField + Copy>(
    u: &[T],
    v: &[T],
    width: usize,
) -> Mat<T> {
    let (rows, columns) = (u.len() / width, v.len() / width);
    let mut out = Mat::zeros(rows, columns);
    matmul(
        out.as_mut(),
        Accum::Replace,
        MatRef::from_row_major_slice(u, rows, width),
        MatRef::from_row_major_slice(v, columns, width).transpose(),
        T::one_impl(),
        get_global_parallelism(),
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_points_are_at_distance_nought() {
        let mut values: Vec<f32> = (0..300).map(|i| (i as f32 * 0.37).sin() + 5.0).collect();
        values.extend_from_within(..100);
        let rows = Rows { width: 100, values };
        let points = Points::new(&rows, Arithmetic::Exact);
        let d = points.distances(0..4, &points, 0..4);
        assert_eq!((d[(0, 0)], d[(0, 3)], d[(3, 0)]), (0.0, 0.0, 0.0));
        let exact: f64 = (0..100)
            .map(|i| f64::from(rows.values[i] - rows.values[100 + i]).powi(2))
            .sum();
        assert!((d[(0, 1)] - exact).abs() < 1e-4 * exact);
    }

    #[test]
    fn half_precision_rounds_and_says_where_it_ends() {
        let rows = Rows {
            width: 2,
            values: vec![1.0001, 0.0, 0.0, 30.03],
        };
        let points = Points::new(&rows, Arithmetic::Half);
        assert!(points.fit_in_half(&points));
        // 1 + 30.03² = 902.8; the spacing of f16 there is ½.
        assert_eq!(points.distances(0..1, &points, 1..2)[(0, 0)], 903.0);
        let far = Rows {
            width: 1,
            values: vec![200.0],
        };
        let far = Points::new(&far, Arithmetic::Half);
        assert!(!far.fit_in_half(&far));
    }
}
