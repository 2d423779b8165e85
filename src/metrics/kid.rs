//! The Kernel Inception Distance (Bińkowski et al. 2018): the unbiased squared MMD with the kernel
//! (x·y/D + 1)³, averaged over random subsets, as torch-fidelity computes it. Features are
//! [N,2048].

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, get_global_parallelism};

use super::features::Rows;
use crate::error::{Result, hinted};
use crate::rng::{Purpose, Stream};

/// The subsets that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subsets {
    pub count: usize,
    /// Images per set in a subset, drawn without replacement.
    pub size: usize,
    pub seed: u64,
}

impl Subsets {
    /// Errors: the sets are too small for these subsets.
    pub fn check(self, samples: usize, reference: usize) -> Result<()> {
        if self.size >= 2 && self.size <= samples.min(reference) && self.count > 0 {
            return Ok(());
        }
        Err(hinted(
            format!(
                "KID: {} subsets of {} images cannot be drawn from {samples} samples and {reference} reference images",
                self.count, self.size
            ),
            "--kid-subset-size must be at least 2 and at most the size of the smaller set",
        ))
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kid {
    pub value: f64,
    /// The standard deviation over subsets.
    pub deviation: f64,
}

/// The mean over subsets and their standard deviation. For a set and itself, in whatever order, it
/// is 0: the unbiased estimate would only measure how the subsets differ, and be negative half of
/// the time.
///
/// Errors: a set is smaller than a subset; a subset has fewer than two images; the features have
/// different dimensions.
pub fn kid(samples: &Rows, reference: &Rows, subsets: Subsets) -> Result<Kid> {
    subsets.check(samples.count(), reference.count())?;
    if samples.width != reference.width {
        return Err(hinted("KID: features of different dimensions", ""));
    }
    if same_rows(samples, reference) {
        return Ok(Kid {
            value: 0.0,
            deviation: 0.0,
        });
    }
    let values: Vec<f64> = (0..subsets.count as u64)
        .map(|number| {
            let x = drawn(samples, subsets, number, 0);
            let y = drawn(reference, subsets, number, 1);
            mmd(&x, &y)
        })
        .collect();
    let n = values.len() as f64;
    let value = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - value).powi(2)).sum();
    Ok(Kid {
        value,
        deviation: (squares / n).sqrt(),
    })
}

/// Whether both hold the same rows, in whatever order.
fn same_rows(a: &Rows, b: &Rows) -> bool {
    let sorted = |rows: &Rows| {
        let bits = |row: &[f32]| row.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
        let mut all: Vec<Vec<u32>> = rows.iter().map(bits).collect();
        all.sort_unstable();
        all
    };
    // Sets of different sizes or different values, as most are, need no sorting.
    let sum = |rows: &Rows| -> u64 { rows.values.iter().map(|x| u64::from(x.to_bits())).sum() };
    a.count() == b.count() && sum(a) == sum(b) && sorted(a) == sorted(b)
}

/// The rows of subset `number`, [D,M]: one column per image.
fn drawn(rows: &Rows, subsets: Subsets, number: u64, side: u32) -> Mat<f64> {
    let mut order: Vec<usize> = (0..rows.count()).collect();
    let mut draws = Stream::new(subsets.seed, Purpose::Subset, number, 2 + side).draws();
    draws.shuffle(&mut order);
    Mat::from_fn(rows.width, subsets.size, |i, j| {
        f64::from(rows.values[order[j] * rows.width + i])
    })
}

fn mmd(x: &Mat<f64>, y: &Mat<f64>) -> f64 {
    let m = x.ncols() as f64;
    let (xx, yy, xy) = (kernel(x, x), kernel(y, y), kernel(x, y));
    let all = |k: &Mat<f64>| -> f64 { (0..k.ncols()).flat_map(|j| k.col(j).iter()).sum() };
    let off_diagonal = |k: &Mat<f64>| all(k) - (0..k.ncols()).map(|i| k[(i, i)]).sum::<f64>();
    (off_diagonal(&xx) + off_diagonal(&yy)) / (m * (m - 1.0)) - 2.0 * all(&xy) / (m * m)
}

/// (x·y/D + 1)³ of all pairs of columns.
fn kernel(x: &Mat<f64>, y: &Mat<f64>) -> Mat<f64> {
    let mut k = Mat::zeros(x.ncols(), y.ncols());
    matmul(
        k.as_mut(),
        Accum::Replace,
        x.transpose(),
        y.as_ref(),
        1.0 / x.nrows() as f64,
        get_global_parallelism(),
    );
    for j in 0..k.ncols() {
        k.col_mut(j)
            .iter_mut()
            .for_each(|k| *k = (*k + 1.0).powi(3));
    }
    k
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(seed: u64, count: usize, mean: f32) -> Rows {
        let mut values = vec![0f32; count * 6];
        Stream::new(seed, Purpose::Noise, 0, 0).fill_normal(&mut values);
        values.iter_mut().for_each(|x| *x += mean);
        Rows { width: 6, values }
    }

    #[test]
    fn the_value_is_the_formulas() -> Result<()> {
        let x = Rows {
            width: 2,
            values: vec![1.0, 0.0, 0.0, 2.0],
        };
        let y = Rows {
            width: 2,
            values: vec![1.0, 1.0, 3.0, 0.0],
        };
        // k(x₁,x₂) = 1, k(y₁,y₂) = 2.5³, k(x,y): 1.5³, 2.5³, 2³, 1.
        let expected = (2.0 + 2.0 * 15.625) / 2.0 - 2.0 * (3.375 + 15.625 + 8.0 + 1.0) / 4.0;
        let whole = Subsets {
            count: 1,
            size: 2,
            seed: 0,
        };
        assert!((kid(&x, &y, whole)?.value - expected).abs() < 1e-12);
        Ok(())
    }

    #[test]
    fn a_set_against_itself_is_at_nought_in_any_order() -> Result<()> {
        let rows = normal(1, 300, 0.0);
        let mut sorted: Vec<&[f32]> = rows.iter().collect();
        sorted.sort_by(|x, y| x[0].total_cmp(&y[0]));
        let values = sorted.concat();
        let sorted = Rows { width: 6, values };
        let subsets = Subsets {
            count: 20,
            size: 50,
            seed: 0,
        };
        for other in [&rows, &sorted] {
            let found = kid(&rows, other, subsets)?;
            assert_eq!((found.value, found.deviation), (0.0, 0.0));
        }
        let mut almost = rows.clone();
        almost.values[7] += 1e-3;
        assert_ne!(kid(&rows, &almost, subsets)?.value, 0.0);
        Ok(())
    }

    #[test]
    fn equal_distributions_are_at_nought_and_others_are_not() -> Result<()> {
        let subsets = Subsets {
            count: 20,
            size: 100,
            seed: 0,
        };
        let (a, b, c) = (
            normal(1, 2000, 0.0),
            normal(2, 2000, 0.0),
            normal(3, 2000, 1.0),
        );
        let same = kid(&a, &b, subsets)?;
        assert!(
            same.value.abs() < 4.0 * same.deviation / 20f64.sqrt(),
            "{same:?}"
        );
        let other = kid(&a, &c, subsets)?;
        assert!(other.value > 10.0 * same.deviation, "{other:?}");
        let error = kid(
            &a,
            &b,
            Subsets {
                size: 5000,
                ..subsets
            },
        )
        .unwrap_err();
        assert!(error.to_string().contains("5000 images"), "{error}");
        Ok(())
    }
}
