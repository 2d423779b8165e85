//! The images that scripts/golden_metrics.py makes by formula.

use image::RgbImage;

pub fn formula(width: u32, height: u32) -> RgbImage {
    let value =
        |x: u32, y: u32, c: u32| x * (3 + c) + y * (5 - c) + 40 * u32::from(x > y) + x * y / 16;
    RgbImage::from_fn(width, height, |x, y| {
        image::Rgb(std::array::from_fn(|c| value(x, y, c as u32) as u8))
    })
}
