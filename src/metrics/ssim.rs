//! Structural similarity (Wang et al. 2004) of two 8-bit images, as scikit-image computes it with
//! the paper's settings.
//!
//! (2μ_aμ_b + c₁)(2σ_ab + c₂) / ((μ_a² + μ_b² + c₁)(σ_a² + σ_b² + c₂)) with means and (co)variances
//! under a Gaussian window of 11×11 (σ 1.5), c₁ = (0.01·255)², c₂ = (0.03·255)²; averaged over the
//! positions whose window lies inside the image and over the channels. Variances are population
//! variances, not sample variances.

use image::RgbImage;

use crate::error::{Result, hinted};

/// Radius of the window in pixels.
const RADIUS: usize = 5;
const WINDOW: usize = 2 * RADIUS + 1;
const SIGMA: f64 = 1.5;

/// In −1..1; 1 for equal images.
///
/// Errors: the sizes differ, or the images are smaller than the window.
pub fn ssim(a: &RgbImage, b: &RgbImage) -> Result<f64> {
    let (w, h) = a.dimensions();
    if b.dimensions() != (w, h) || w.min(h) < WINDOW as u32 {
        return Err(hinted(
            format!(
                "SSIM of {w}×{h} and {}×{} pixels: expected equal sizes of at least {WINDOW}×{WINDOW}",
                b.width(),
                b.height()
            ),
            "leave SSIM out for such small images",
        ));
    }
    let (w, h) = (w as usize, h as usize);
    let window = gaussian();
    let channels = (0..3).map(|c| channel(a, b, c, (w, h), &window));
    Ok(channels.sum::<f64>() / 3.0)
}

fn gaussian() -> [f64; WINDOW] {
    let weight = |i: usize| {
        let x = i as f64 - RADIUS as f64;
        (-0.5 * x * x / (SIGMA * SIGMA)).exp()
    };
    let weights: [f64; WINDOW] = std::array::from_fn(weight);
    let sum: f64 = weights.iter().sum();
    weights.map(|w| w / sum)
}

/// The mean over the positions of channel `c`.
fn channel(
    a: &RgbImage,
    b: &RgbImage,
    c: usize,
    size: (usize, usize),
    window: &[f64; WINDOW],
) -> f64 {
    let plane = |image: &RgbImage| -> Vec<f64> {
        let values = image.as_raw().iter().skip(c).step_by(3);
        values.map(|&value| f64::from(value)).collect()
    };
    let (a, b) = (plane(a), plane(b));
    let product =
        |x: &[f64], y: &[f64]| -> Vec<f64> { x.iter().zip(y).map(|(x, y)| x * y).collect() };
    let mean = |plane: &[f64]| filtered(plane, size, window);
    let (mean_a, mean_b) = (mean(&a), mean(&b));
    let (squares_a, squares_b) = (mean(&product(&a, &a)), mean(&product(&b, &b)));
    let products = mean(&product(&a, &b));
    let (c1, c2) = ((0.01f64 * 255.0).powi(2), (0.03f64 * 255.0).powi(2));
    let means = mean_a.iter().zip(&mean_b);
    let squares = squares_a.iter().zip(&squares_b);
    let mut sum = 0.0;
    for (((ma, mb), (sa, sb)), product) in means.zip(squares).zip(&products) {
        let (va, vb) = (sa - ma * ma, sb - mb * mb);
        let covariance = product - ma * mb;
        sum += (2.0 * ma * mb + c1) * (2.0 * covariance + c2)
            / ((ma * ma + mb * mb + c1) * (va + vb + c2));
    }
    sum / mean_a.len() as f64
}

/// Weighted means at every position where the window fits: [h,w] → [h−10,w−10].
fn filtered(plane: &[f64], (w, h): (usize, usize), window: &[f64; WINDOW]) -> Vec<f64> {
    let (narrow, low) = (w - 2 * RADIUS, h - 2 * RADIUS);
    let mut across = vec![0f64; h * narrow];
    for (out, row) in across.chunks_exact_mut(narrow).zip(plane.chunks_exact(w)) {
        for (k, weight) in window.iter().enumerate() {
            for (out, value) in out.iter_mut().zip(&row[k..]) {
                *out += weight * value;
            }
        }
    }
    let mut down = vec![0f64; low * narrow];
    for (y, out) in down.chunks_exact_mut(narrow).enumerate() {
        let rows = across[y * narrow..].chunks_exact(narrow);
        for (weight, row) in window.iter().zip(rows) {
            for (out, value) in out.iter_mut().zip(row) {
                *out += weight * value;
            }
        }
    }
    down
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_pictures_have_one_and_small_or_unequal_ones_an_error() -> Result<()> {
        let ramp = |w, h| RgbImage::from_fn(w, h, |x, y| image::Rgb([x as u8, y as u8, 9]));
        assert!((ssim(&ramp(11, 30), &ramp(11, 30))? - 1.0).abs() < 1e-12);
        let error = ssim(&ramp(11, 30), &ramp(11, 31)).unwrap_err().to_string();
        assert!(error.contains("11×30 and 11×31"), "{error}");
        assert!(ssim(&ramp(10, 30), &ramp(10, 30)).is_err());
        Ok(())
    }
}
