//! Tensors to images: [B,H,W,3] in [-1,1] becomes 8-bit by round((x+1)·127.5), clamped [ours].

use ::image::RgbImage;
use candle_core::{DType, Device, Tensor};

use crate::error::{Context, Error, Result, hinted};
use crate::ops::bytes::byte;

/// The B images of `images` [B,H,W,3]; ties round to even, as in PyTorch.
///
/// Errors: an image holds NaN or infinity; it is named by its index.
pub fn to_rgb(images: &Tensor) -> Result<Vec<RgbImage>> {
    named_rgb(images, |i| format!("image {i} of the batch"))
}

/// Like [`to_rgb`]; errors call image i `name(i)`.
pub fn named_rgb(images: &Tensor, name: impl Fn(usize) -> String) -> Result<Vec<RgbImage>> {
    let (_, h, w, c) = images.dims4()?;
    anyhow::ensure!(
        c == 3,
        "an image has 3 channels in the last dimension, found {c}"
    );
    let values = images
        .to_device(&Device::Cpu)?
        .to_dtype(DType::F32)?
        .flatten_all()?
        .to_vec1::<f32>()?;
    values
        .chunks(h * w * 3)
        .enumerate()
        .map(|(i, picture)| {
            if !picture.iter().all(|x| x.is_finite()) {
                return Err(not_finite(&name(i), "its pixels"));
            }
            let bytes = picture.iter().map(|&x| byte(x)).collect();
            RgbImage::from_raw(w as u32, h as u32, bytes).context("an empty image")
        })
        .collect()
}

/// The error for an image with NaN or infinity in its `what`.
pub fn not_finite(image: &str, what: &str) -> Error {
    hinted(
        format!("{image}: {what} are not finite (NaN or infinity)"),
        "the model has diverged, or its weights are damaged: use another, or an earlier checkpoint of its run \
         (RUN/checkpoints/step-N)",
    )
}

/// Images of equal size as [B,H,W,3] in [-1,1].
pub fn from_rgb(pictures: &[RgbImage], device: &Device) -> Result<Tensor> {
    let (w, h) = pictures.first().context("no picture")?.dimensions();
    let values: Vec<f32> = pictures
        .iter()
        .flat_map(|p| p.as_raw().iter().map(|&b| f32::from(b) / 127.5 - 1.0))
        .collect();
    let shape = (pictures.len(), h as usize, w as usize, 3);
    Ok(Tensor::from_vec(values, shape, device)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_rounded_and_clamped_in_row_order() -> Result<()> {
        let x: Vec<f32> = vec![
            -1.0, 1.0, 0.0, -2.0, 7.0, -0.5, 0.25, 0.996, -0.996, 0.1, 0.2, 0.3,
        ];
        let pictures = to_rgb(&Tensor::from_vec(x, (2, 1, 2, 3), &Device::Cpu)?)?;
        assert_eq!(pictures.len(), 2);
        assert_eq!(pictures[0].dimensions(), (2, 1));
        // 127.5 rounds to the even 128; the others are 63.75 and 159.375.
        assert_eq!(pictures[0].as_raw(), &[0, 255, 128, 0, 255, 64]);
        assert_eq!(pictures[1].as_raw(), &[159, 254, 1, 140, 153, 166]);
        let again = to_rgb(&from_rgb(&pictures, &Device::Cpu)?)?;
        assert_eq!(again, pictures);
        Ok(())
    }

    #[test]
    fn a_picture_that_is_not_finite_is_an_error_that_names_it() -> Result<()> {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let images = Tensor::new(&[0f32, 1.0, 0.5, 0.0, bad, 0.0], &Device::Cpu)?;
            let images = images.reshape((2, 1, 1, 3))?;
            let error = named_rgb(&images, |i| format!("image 1{i}")).unwrap_err();
            let (text, code) = crate::error::report(&error);
            assert!(
                text.contains("image 11: its pixels are not finite"),
                "{text}"
            );
            assert!(text.contains("hint:") && code == 1, "{text}");
            assert!(to_rgb(&images).is_err());
            assert_eq!(to_rgb(&images.narrow(0, 0, 1)?)?.len(), 1);
        }
        Ok(())
    }

    #[test]
    fn a_map_of_another_width_is_refused() -> Result<()> {
        let latents = Tensor::zeros((1, 2, 2, 8), DType::F32, &Device::Cpu)?;
        assert!(
            to_rgb(&latents)
                .unwrap_err()
                .to_string()
                .contains("found 8")
        );
        Ok(())
    }
}
