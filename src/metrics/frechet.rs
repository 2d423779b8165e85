//! The Fréchet distance of two normal distributions (Dowson and Landau 1982), FID's formula, in
//! f64: ‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ − 2·tr √(Σ₁Σ₂).
//!
//! Σ₁Σ₂ has the eigenvalues of the symmetric D^½·Uᵀ·Σ₂·U·D^½, where Σ₁ = U·D·Uᵀ; the sum of their
//! square roots is the trace. Both matrices may be singular (fewer images than dimensions).
//! Negative eigenvalues are rounding errors and are set to zero, so that nothing has to be added to
//! a diagonal. A negative distance is rounding error too, and the distance of equal distributions
//! is exactly 0.

use faer::{Mat, Side};

use super::statistics::{Gaussian, GroupedMoments};
use crate::error::{Result, hinted};

/// Student's t for a two-sided 95 % interval with nine degrees of freedom: ten groups.
const T_OF_TEN_GROUPS: f64 = 2.262;

/// A distance below this fraction of the traces is rounding error: the precision left in f64 after
/// the square roots of 2048 eigenvalues.
const ROUNDING: f64 = 1e-9;

/// Number of groups of the jackknife.
pub const GROUPS: usize = 10;

/// A distribution that others are compared with; its eigenvectors are computed once.
pub struct Reference {
    gaussian: Gaussian,
    trace: f64,
    /// U·D^½.
    root: Mat<f64>,
}

impl Reference {
    /// Errors: the covariance is not finite.
    pub fn new(gaussian: &Gaussian) -> Result<Self> {
        let failed = |e| hinted(format!("no eigenvalues of the covariance: {e:?}"), "");
        let eigen = gaussian
            .covariance
            .self_adjoint_eigen(Side::Lower)
            .map_err(failed)?;
        let values = eigen.S().column_vector();
        let mut root = eigen.U().to_owned();
        for (j, &value) in values.iter().enumerate() {
            let scale = root_of(value);
            root.col_mut(j).iter_mut().for_each(|x| *x *= scale);
        }
        Ok(Self {
            gaussian: gaussian.clone(),
            trace: trace(&gaussian.covariance),
            root,
        })
    }

    /// The distance of `other` from this one: at least 0, or NaN.
    ///
    /// Errors: the two have different dimensions.
    pub fn distance(&self, other: &Gaussian) -> Result<f64> {
        let own = &self.gaussian;
        if other.width() != own.width() {
            return Err(hinted(
                format!(
                    "features of {} and of {} dimensions cannot be compared",
                    other.width(),
                    own.width()
                ),
                "both sides must be made by the same network, at the same --dims",
            ));
        }
        if own.mean == other.mean && own.covariance == other.covariance {
            return Ok(0.0);
        }
        let product = self.root.transpose() * (&other.covariance * &self.root);
        let failed = |e| hinted(format!("no eigenvalues of the product: {e:?}"), "");
        let values = product
            .self_adjoint_eigenvalues(Side::Lower)
            .map_err(failed)?;
        let roots: f64 = values.iter().map(|&value| root_of(value)).sum();
        let means = own.mean.iter().zip(&other.mean);
        let apart: f64 = means.map(|(a, b)| (a - b).powi(2)).sum();
        let traces = self.trace + trace(&other.covariance);
        let distance = apart + traces - 2.0 * roots;
        // Also for NaN, for which every comparison is false.
        Ok(if distance < ROUNDING * traces {
            0.0
        } else {
            distance
        })
    }

    /// The 95 % confidence interval of the samples' distance `value`: the delete-a-group jackknife
    /// over their groups.
    ///
    /// s² = (G−1)/G·Σ(d₋ᵍ − d̄)²; the interval is d ± t·s. It says how much the value would vary
    /// with other samples of the same model; it does not remove the bias of a smaller number of
    /// samples.
    pub fn interval(&self, value: f64, samples: &GroupedMoments) -> Result<[f64; 2]> {
        let groups = samples.groups();
        let left = (0..groups)
            .map(|group| self.distance(&samples.without(group)?))
            .collect::<Result<Vec<f64>>>()?;
        let g = groups as f64;
        let mean = left.iter().sum::<f64>() / g;
        let squares: f64 = left.iter().map(|d| (d - mean).powi(2)).sum();
        let half = T_OF_TEN_GROUPS * ((g - 1.0) / g * squares).sqrt();
        let low = value - half;
        Ok([if low < 0.0 { 0.0 } else { low }, value + half])
    }
}

/// √x, or 0 for negative x. (`f64::max` would drop a NaN.)
fn root_of(x: f64) -> f64 {
    if x < 0.0 { 0.0 } else { x.sqrt() }
}

fn trace(matrix: &Mat<f64>) -> f64 {
    (0..matrix.nrows()).map(|i| matrix[(i, i)]).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Rows;
    use crate::metrics::statistics::Groups;
    use crate::rng::{Purpose, Stream};

    fn normal(seed: u64, count: usize, width: usize) -> Rows {
        let mut values = vec![0f32; count * width];
        Stream::new(seed, Purpose::Noise, 0, 0).fill_normal(&mut values);
        Rows { width, values }
    }

    fn diagonal(mean: &[f64], variance: &[f64]) -> Gaussian {
        Gaussian {
            mean: mean.to_vec(),
            covariance: Mat::from_fn(mean.len(), mean.len(), |i, j| {
                if i == j { variance[i] } else { 0.0 }
            }),
        }
    }

    #[test]
    fn independent_dimensions_add_up() -> Result<()> {
        // Σ (μ − m)² + (σ − s)²
        let a = diagonal(&[1.0, -2.0, 0.0], &[4.0, 1.0, 0.0]);
        let b = diagonal(&[0.0, -2.0, 3.0], &[1.0, 9.0, 0.25]);
        let expected = 1.0 + 9.0 + 1.0 + 4.0 + 0.25;
        for (a, b) in [(&a, &b), (&b, &a)] {
            let distance = Reference::new(a)?.distance(b)?;
            assert!((distance - expected).abs() < 1e-9, "{distance}");
        }
        Ok(())
    }

    #[test]
    fn singular_covariances_have_a_distance() -> Result<()> {
        let (a, b) = (normal(1, 20, 64), normal(2, 20, 64));
        let (a, b) = (Gaussian::of(&a)?, Gaussian::of(&b)?);
        let itself = Reference::new(&a)?.distance(&a)?;
        assert_eq!(itself, 0.0);
        let there = Reference::new(&a)?.distance(&b)?;
        let back = Reference::new(&b)?.distance(&a)?;
        assert!(there > 1.0 && (there - back).abs() < 1e-6 * there);
        Ok(())
    }

    #[test]
    fn a_set_against_itself_in_another_order_is_never_below_nought() -> Result<()> {
        for (count, width) in [(20, 64), (300, 32), (64, 64), (1000, 8)] {
            for seed in 0..6 {
                let rows = normal(seed, count, width);
                let mut shuffled: Vec<&[f32]> = rows.iter().collect();
                shuffled.sort_by(|x, y| x[0].total_cmp(&y[0]));
                let values = shuffled.concat();
                let shuffled = Gaussian::of(&Rows { width, values })?;
                let reference = Reference::new(&Gaussian::of(&rows)?)?;
                let distance = reference.distance(&shuffled)?;
                assert!(
                    (0.0..1e-5).contains(&distance),
                    "{count} × {width}: {distance}"
                );
            }
        }
        Ok(())
    }

    #[test]
    fn a_distance_that_overflows_is_not_taken_for_a_good_one() -> Result<()> {
        // Finite, but their products overflow.
        let huge = diagonal(&[0.0; 2], &[1e200; 2]);
        let found = Reference::new(&huge)?.distance(&diagonal(&[1e200; 2], &[1e200, 3.0]));
        assert!(!found.is_ok_and(f64::is_finite));
        Ok(())
    }

    #[test]
    fn the_order_of_rows_changes_nothing_and_the_width_must_agree() -> Result<()> {
        let (a, b) = (normal(1, 300, 16), normal(2, 500, 16));
        let mut sorted: Vec<&[f32]> = b.iter().collect();
        sorted.sort_by(|x, y| x[0].total_cmp(&y[0]));
        let sorted = Rows {
            width: 16,
            values: sorted.concat(),
        };
        let reference = Reference::new(&Gaussian::of(&a)?)?;
        let (one, two) = (Gaussian::of(&b)?, Gaussian::of(&sorted)?);
        let (one, two) = (reference.distance(&one)?, reference.distance(&two)?);
        assert!((one - two).abs() < 1e-9 * one, "{one} {two}");
        let narrow = Gaussian::of(&normal(3, 50, 8))?;
        let error = reference.distance(&narrow).unwrap_err().to_string();
        assert!(error.contains("of 8 and of 16 dimensions"), "{error}");
        Ok(())
    }

    #[test]
    fn the_interval_holds_the_value_and_narrows_with_more_samples() -> Result<()> {
        let reference = Reference::new(&diagonal(&[0.5; 4], &[1.0; 4]))?;
        let mut widths = Vec::new();
        for count in [400, 40_000] {
            let mut samples = GroupedMoments::new(
                Groups {
                    count: GROUPS,
                    period: 1,
                    seed: 0,
                },
                4,
            );
            samples.add(&normal(7, count, 4));
            let value = reference.distance(&samples.gaussian()?)?;
            let [low, high] = reference.interval(value, &samples)?;
            assert!(low < value && value < high);
            widths.push(high - low);
        }
        // Ten times narrower for a hundred times as many samples, within the precision of ten
        // groups.
        assert!(widths[0] > 3.0 * widths[1], "{widths:?}");
        Ok(())
    }
}
