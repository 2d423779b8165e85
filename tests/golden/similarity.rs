//! PSNR and SSIM against scikit-image.

use candle_core::{DType, Device};
use image::RgbImage;
use rdpm::error::Result;
use rdpm::metrics::{psnr, ssim};

use crate::fixture::Golden;
use crate::pictures::formula;

/// `image` rolled right by two pixels.
fn rolled(image: &RgbImage) -> RgbImage {
    let w = image.width();
    RgbImage::from_fn(w, image.height(), |x, y| {
        *image.get_pixel((x + w - 2) % w, y)
    })
}

#[test]
fn ssim_and_psnr_are_scikit_images() -> Result<()> {
    let golden = Golden::open("pairs")?;
    for (i, (w, h)) in [(64, 48), (31, 11)].into_iter().enumerate() {
        let picture = formula(w, h);
        let noisy = golden
            .get(&format!("{i}.noisy"))
            .flatten_all()?
            .to_vec1::<u8>()?;
        let noisy = RgbImage::from_raw(w, h, noisy).expect("three bytes a pixel");
        let expected = golden.get(&format!("{i}.expected"));
        let expected = expected
            .to_dtype(DType::F64)?
            .to_device(&Device::Cpu)?
            .to_vec2::<f64>()?;
        for (other, expected) in [noisy, rolled(&picture)].iter().zip(expected) {
            let found = [ssim(&picture, other)?, psnr(&picture, other)];
            for (found, expected) in found.into_iter().zip(expected) {
                assert!(
                    (found - expected).abs() < 1e-9,
                    "{found}, expected {expected}"
                );
            }
        }
    }
    Ok(())
}
