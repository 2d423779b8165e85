//! Pictures as bytes and as text.

use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::RgbImage;

use super::refusal::Refusal;
use crate::sample;

/// A PNG.
pub fn png(image: &RgbImage) -> Result<Vec<u8>, Refusal> {
    sample::png(image).map_err(|e| {
        Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("cannot encode a picture: {e}"),
            "this is a bug in rdpm: please report it",
        )
    })
}

/// A PNG in base64.
pub fn text(image: &RgbImage) -> Result<String, Refusal> {
    Ok(STANDARD.encode(png(image)?))
}
