//! Peak signal-to-noise ratio of two 8-bit images: 10·log10(255² / MSE), in dB.

use image::RgbImage;

/// Over all channels; 100 dB at most, for equal images.
pub fn psnr(a: &RgbImage, b: &RgbImage) -> f64 {
    let squared = |(x, y): (&u8, &u8)| f64::from(x.abs_diff(*y)).powi(2);
    let sum: f64 = a.as_raw().iter().zip(b.as_raw()).map(squared).sum();
    let mse = sum / a.as_raw().len() as f64;
    (10.0 * (255.0f64.powi(2) / mse).log10()).min(100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn psnr_is_of_the_mean_squared_difference_of_bytes() {
        let gray = |v| RgbImage::from_pixel(4, 4, image::Rgb([v; 3]));
        // 20·log10(255 / 10)
        assert!((psnr(&gray(100), &gray(110)) - 28.130_803_608_679_1).abs() < 1e-9);
        assert_eq!(psnr(&gray(1), &gray(1)), 100.0);
    }
}
