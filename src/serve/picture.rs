//! Pictures as bytes and as text.

use std::io::Cursor;

use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder, RgbImage};

use super::refusal::Refusal;

/// A PNG; encoding into memory fails only for an image without pixels.
pub fn png(image: &RgbImage) -> Result<Vec<u8>, Refusal> {
    let mut bytes = Cursor::new(Vec::new());
    let (width, height) = image.dimensions();
    PngEncoder::new(&mut bytes)
        .write_image(image.as_raw(), width, height, ExtendedColorType::Rgb8)
        .map_err(|e| {
            Refusal::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("cannot encode a picture: {e}"),
                "this is a bug in rdpm: please report it",
            )
        })?;
    Ok(bytes.into_inner())
}

/// A PNG in base64.
pub fn text(image: &RgbImage) -> Result<String, Refusal> {
    Ok(STANDARD.encode(png(image)?))
}
