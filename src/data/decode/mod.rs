//! Encoded bytes become RGB: JPEG, PNG, WebP, BMP, PNM or TIFF, decided by content, not by name.
//!
//! - Transparency is composited over white. Of 16-bit samples the high byte counts, as in Pillow
//!   (but of gray ones too, which Pillow's `convert("RGB")` clips to white). The first frame of an
//!   animation counts.
//! - EXIF orientation and colour profiles are ignored, as in the loaders of ADM and
//!   taming-transformers.
//! - A header that claims more than 512 MiB of pixels, counted as RGB or RGBA, is refused before
//!   anything is allocated.
//! - JPEG has the pixels of libjpeg-turbo (`jpeg/mod.rs`), but a truncated or damaged one is an
//!   error, not an image with a grey rest. (It has no checksum: flipped bits that decode to
//!   something remain unnoticed.) What follows its end marker is left out.

mod pnm;
#[cfg(test)]
mod tests;
mod tiff;

use std::io::Cursor;
use std::sync::atomic::{AtomicUsize, Ordering};

use image::{
    DynamicImage, ImageBuffer, ImageDecoder, ImageError, ImageFormat, ImageReader, Pixel, RgbImage,
};

use super::image_kind::{ImageKind, other_content};
use super::jpeg::{self, Refusal};
use crate::error::{Result, hinted};

/// Pixels of one image in memory: beyond it a header is taken for hostile. About 13,000 × 13,000.
const MAX_BYTES: u64 = 512 << 20;

/// What one image may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of its pixels.
    pub bytes: u64,
    /// Scans of a JPEG, as far as they are of the whole image.
    pub scans: u64,
}

impl Limits {
    /// Of a file that somebody put among his own.
    const OF_DATA: Self = Self {
        bytes: MAX_BYTES,
        scans: u64::MAX,
    };
}

/// Longer side over shorter side.
const MAX_ASPECT: u32 = 100;

const HINT: &str = "replace or remove the file, or leave bad images out with --skip-bad-images";

/// Decodes `bytes`; an error names `path`.
pub fn decode(bytes: &[u8], path: &str) -> Result<RgbImage> {
    decode_within(bytes, path, Limits::OF_DATA)
}

/// [`decode_within`] for fuzzing: a panic in JPEG and PNM, whose decoders are this program's, is
/// not caught.
pub(crate) fn decode_uncaught(bytes: &[u8], path: &str, limits: Limits) -> Result<RgbImage> {
    match ImageKind::of_content(bytes) {
        Some(ImageKind::Jpeg | ImageKind::Pnm) => {
            decode_any(bytes, path, limits).map_err(|reason| hinted(reason, HINT))
        }
        _ => decode_within(bytes, path, limits),
    }
}

/// [`decode`] within `limits`.
pub fn decode_within(bytes: &[u8], path: &str, limits: Limits) -> Result<RgbImage> {
    let _span = tracing::debug_span!("decode").entered();
    // Decoders have panicked on damaged files before; one file must not end the run, nor escape
    // `skip_bad`.
    let decoded = std::panic::catch_unwind(|| decode_any(bytes, path, limits))
        .unwrap_or_else(|_| Err("the decoder panicked".to_string()));
    decoded.map_err(|reason| hinted(format!("{path}: {reason}"), HINT))
}

fn decode_any(bytes: &[u8], path: &str, limits: Limits) -> std::result::Result<RgbImage, String> {
    let limit = limits.bytes.min(MAX_BYTES);
    let fits = |width, height, bytes_per_pixel| fits(width, height, bytes_per_pixel, limit);
    if bytes.is_empty() {
        return Err("the file is empty".to_string());
    }
    match ImageKind::of_content(bytes) {
        Some(ImageKind::Jpeg) => {
            let fits = |width, height| fits(width, height, 3);
            jpeg(bytes, path, fits, limits.scans)
        }
        Some(ImageKind::Png) => other(bytes, ImageKind::Png, ImageFormat::Png, fits),
        Some(ImageKind::WebP) => other(bytes, ImageKind::WebP, ImageFormat::WebP, fits),
        Some(ImageKind::Bmp) => {
            let mut image = other(bytes, ImageKind::Bmp, ImageFormat::Bmp, fits)?;
            if let Some(widths) = bmp_16_bits(bytes) {
                round_down(&mut image, widths);
            }
            Ok(image)
        }
        Some(ImageKind::Pnm) => pnm::decode(bytes, |width, height| fits(width, height, 3)),
        Some(ImageKind::Tiff) => tiff::decode(bytes, fits),
        None => Err(match other_content(bytes) {
            Some(found) => format!("expected JPEG, PNG, WebP, BMP, PNM or TIFF, found {found}"),
            None => "not an image".to_string(),
        }),
    }
}

/// PNG, WebP and BMP, by the crate `image`.
fn other(
    bytes: &[u8],
    kind: ImageKind,
    format: ImageFormat,
    fits: impl Fn(u32, u32, u64) -> std::result::Result<(), String>,
) -> std::result::Result<RgbImage, String> {
    let explain = |error: ImageError| match error {
        ImageError::Unsupported(error) => format!("{} not supported: {error}", kind.name()),
        ImageError::Limits(error) => format!("{} of too many pixels: {error}", kind.name()),
        error => format!("damaged {}: {error}", kind.name()),
    };
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(image::Limits::no_limits());
    let mut decoder = reader.into_decoder().map_err(explain)?;
    let (width, height) = decoder.dimensions();
    let colour = decoder.color_type();
    // What is held at once in the worst case: the decoder's own samples, then RGB or RGBA of 8
    // bits.
    let expanded = if colour.has_alpha() { 4 } else { 3 };
    fits(width, height, expanded.max(colour.bytes_per_pixel().into()))?;
    let mut limits = image::Limits::no_limits();
    limits.max_alloc = Some(2 * MAX_BYTES);
    decoder.set_limits(limits).map_err(explain)?;
    Ok(over_white(
        DynamicImage::from_decoder(decoder).map_err(explain)?,
    ))
}

/// How many bits red, green and blue have in a BMP of 16 bits a pixel.
fn bmp_16_bits(bytes: &[u8]) -> Option<[u32; 3]> {
    let number = |at| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let (header, depth, coding) = (number(14)?, number(26)? >> 16, number(30)?);
    if header < 40 || depth != 16 {
        return None;
    }
    // BI_BITFIELDS: masks follow.
    match coding == 3 {
        true => Some([number(54)?, number(58)?, number(62)?].map(u32::count_ones)),
        false => Some([5; 3]),
    }
}

/// Rounds samples that had fewer bits down, as Pillow does, where `image` rounds to the nearest.
fn round_down(image: &mut RgbImage, widths: [u32; 3]) {
    let table = |bits: u32| -> [u8; 256] {
        let largest = (1u32 << bits.clamp(1, 8)) - 1;
        std::array::from_fn(|byte| {
            let sample = (byte as u32 * largest + 127) / 255;
            (sample * 255 / largest) as u8
        })
    };
    let tables = widths.map(table);
    for pixel in image.pixels_mut() {
        for (sample, table) in pixel.0.iter_mut().zip(&tables) {
            *sample = table[usize::from(*sample)];
        }
    }
}

/// Refuses a size that a header claims before anything is allocated for it or decoded: too many
/// pixels, or so narrow that it would grow without bound when its shorter side is scaled to a
/// model's size.
fn fits(
    width: u32,
    height: u32,
    bytes_per_pixel: u64,
    limit: u64,
) -> std::result::Result<(), String> {
    if width.max(height) / width.min(height).max(1) > MAX_ASPECT {
        return Err(format!(
            "{width}×{height} pixels: one side is more than {MAX_ASPECT} times the other"
        ));
    }
    match u64::from(width) * u64::from(height) > limit / bytes_per_pixel {
        true => Err(format!(
            "{width}×{height} pixels of {bytes_per_pixel} bytes are more than {} MiB",
            limit >> 20
        )),
        false => Ok(()),
    }
}

fn jpeg(
    bytes: &[u8],
    path: &str,
    fits: impl Fn(u32, u32) -> std::result::Result<(), String>,
    scans: u64,
) -> std::result::Result<RgbImage, String> {
    let picture = jpeg::decode(bytes, fits, scans);
    let picture = picture.map_err(|refusal| match refusal {
        Refusal::Damaged(what) => format!("damaged JPEG: {what}"),
        Refusal::Unsupported(what) => format!("JPEG not supported: {what}"),
        Refusal::TooLarge(what) => what,
    })?;
    if picture.stray > 0 {
        warn_of_stray(picture.stray, path);
    }
    RgbImage::from_raw(picture.width as u32, picture.height as u32, picture.rgb)
        .ok_or_else(|| "damaged JPEG: fewer pixels than its header says".to_string())
}

/// Names the first files that have bytes between their segments; a data set may be full of them.
fn warn_of_stray(bytes: usize, path: &str) {
    const NAMED: usize = 10;
    static WARNED: AtomicUsize = AtomicUsize::new(0);
    let more = match WARNED.fetch_add(1, Ordering::Relaxed) + 1 {
        NAMED => "; further files are not named",
        1..NAMED => "",
        _ => return,
    };
    tracing::warn!(
        "{path}: {bytes} stray bytes between the segments of the JPEG were passed over{more}"
    );
}

fn high_byte(sample: u16) -> u8 {
    sample.to_be_bytes()[0]
}

/// An image of 16-bit samples with their high bytes.
fn of_8_bits(image: DynamicImage) -> DynamicImage {
    fn high<P, Q>(image: &ImageBuffer<P, Vec<u16>>) -> Option<ImageBuffer<Q, Vec<u8>>>
    where
        P: Pixel<Subpixel = u16>,
        Q: Pixel<Subpixel = u8>,
    {
        let bytes = image.as_raw().iter().map(|sample| high_byte(*sample));
        ImageBuffer::from_raw(image.width(), image.height(), bytes.collect())
    }
    let converted = match &image {
        DynamicImage::ImageLuma16(image) => high(image).map(DynamicImage::ImageLuma8),
        DynamicImage::ImageLumaA16(image) => high(image).map(DynamicImage::ImageLumaA8),
        DynamicImage::ImageRgb16(image) => high(image).map(DynamicImage::ImageRgb8),
        DynamicImage::ImageRgba16(image) => high(image).map(DynamicImage::ImageRgba8),
        _ => None,
    };
    converted.unwrap_or(image)
}

/// RGB of any image; c = c·a + 1·(1−a) where it has transparency.
fn over_white(image: DynamicImage) -> RgbImage {
    let image = of_8_bits(image);
    if !image.color().has_alpha() {
        return image.into_rgb8();
    }
    let image = image.into_rgba8();
    let (width, height) = image.dimensions();
    RgbImage::from_fn(width, height, |x, y| {
        let [r, g, b, a] = image.get_pixel(x, y).0;
        image::Rgb(over_white_pixel([r, g, b], a))
    })
}

fn over_white_pixel(rgb: [u8; 3], a: u8) -> [u8; 3] {
    let a = u32::from(a);
    rgb.map(|c| ((u32::from(c) * a + 255 * (255 - a) + 127) / 255) as u8)
}
