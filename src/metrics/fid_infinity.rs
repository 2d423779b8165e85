//! FID∞ (Chong and Forsyth 2020): FID's bias is proportional to 1/N, so a line through the FIDs of
//! subsets gives the value at 1/N = 0.
//!
//! Fifteen sizes, evenly spaced from 5,000 (half of the samples if there are fewer than 10,000) to
//! all, each a separate subset drawn without replacement [ours: the paper's code draws nested
//! prefixes of one shuffle].

use super::features::Rows;
use super::frechet::Reference;
use super::statistics::Moments;
use crate::error::{Result, hinted};
use crate::rng::{Purpose, Stream};

const SIZES: usize = 15;
const SMALLEST: usize = 5000;

/// Size of the smallest subset of `n` samples.
pub fn smallest_subset(n: usize) -> usize {
    SMALLEST.min(n / 2)
}

/// Errors: `n` samples are too few for a line.
pub fn check(n: usize) -> Result<()> {
    if n >= 2 * SIZES {
        return Ok(());
    }
    Err(hinted(
        format!("FID∞ of {n} samples: too few to draw subsets of {SIZES} sizes"),
        "name more images",
    ))
}

/// The line's value at 1/N = 0; negative values become 0, because it is a distance.
///
/// Errors: too few samples for a line.
pub fn fid_infinity(reference: &Reference, samples: &Rows, seed: u64) -> Result<f64> {
    let n = samples.count();
    check(n)?;
    let smallest = smallest_subset(n);
    let mut points = Vec::with_capacity(SIZES);
    for i in 0..SIZES {
        let size = smallest + (n - smallest) * i / (SIZES - 1);
        let mut order: Vec<usize> = (0..n).collect();
        let mut draws = Stream::new(seed, Purpose::Subset, i as u64, 0).draws();
        draws.shuffle(&mut order);
        let mut moments = Moments::new(samples.width);
        for &row in &order[..size] {
            moments.add(&samples.values[row * samples.width..][..samples.width]);
        }
        points.push((1.0 / size as f64, reference.distance(&moments.gaussian()?)?));
    }
    let value = intercept(&points);
    Ok(if value < 0.0 { 0.0 } else { value })
}

/// Intercept of the least-squares line through (x, y).
fn intercept(points: &[(f64, f64)]) -> f64 {
    let n = points.len() as f64;
    let mean = |f: &dyn Fn(&(f64, f64)) -> f64| points.iter().map(f).sum::<f64>() / n;
    let (x, y) = (mean(&|p| p.0), mean(&|p| p.1));
    let slope = mean(&|p| (p.0 - x) * (p.1 - y)) / mean(&|p| (p.0 - x).powi(2));
    y - slope * x
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::statistics::Gaussian;
    use faer::Mat;

    #[test]
    fn a_line_is_read_at_nought() {
        let points: Vec<_> = (1..6)
            .map(|i| (f64::from(i), 3.0 + 2.0 * f64::from(i)))
            .collect();
        assert!((intercept(&points) - 3.0).abs() < 1e-12);
    }

    #[test]
    fn a_set_against_itself_is_at_nought() -> Result<()> {
        let width = 8;
        for seed in 0..5 {
            let mut values = vec![0f32; 400 * width];
            Stream::new(seed, Purpose::Noise, 0, 0).fill_normal(&mut values);
            let samples = Rows { width, values };
            let reference = Reference::new(&Gaussian::of(&samples)?)?;
            let value = fid_infinity(&reference, &samples, 0)?;
            assert!((0.0..0.01).contains(&value), "{value}");
        }
        Ok(())
    }

    #[test]
    fn the_bias_of_few_samples_goes() -> Result<()> {
        let width = 32;
        let mut values = vec![0f32; 1000 * width];
        Stream::new(5, Purpose::Noise, 0, 0).fill_normal(&mut values);
        let samples = Rows { width, values };
        let exact = Gaussian {
            mean: vec![0.0; width],
            covariance: Mat::identity(width, width),
        };
        let reference = Reference::new(&exact)?;
        let fid = reference.distance(&Gaussian::of(&samples)?)?;
        let beyond = fid_infinity(&reference, &samples, 0)?;
        // Both would be 0 for infinitely many samples; FID of 1000 samples is about D·(D+3)/4N =
        // 0.28.
        assert!(fid > 0.2 && beyond.abs() < 0.3 * fid, "{fid} {beyond}");
        Ok(())
    }
}
