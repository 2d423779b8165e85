//! Encoded bytes become RGB: JPEG, PNG, WebP, BMP, PNM or TIFF, decided by content, not by name.
//!
//! - Transparency is composited over white. 16-bit samples are rounded to 8. The first frame of an animation counts.
//! - EXIF orientation and colour profiles are ignored, as in the loaders of ADM and taming-transformers.
//! - A header that claims more than 512 MiB of pixels, counted as RGB or RGBA, is refused before anything is
//!   allocated.
//! - JPEG has the pixels of libjpeg-turbo (`jpeg/mod.rs`), but a truncated or damaged one is an error, not an image with
//!   a grey rest. (It has no checksum: flipped bits that decode to something remain unnoticed.) What follows its end
//!   marker is left out.

use std::io::Cursor;
use std::sync::atomic::{AtomicUsize, Ordering};

use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, RgbImage};

use super::image_kind::{ImageKind, other_content};
use super::jpeg::{self, Refusal};
use crate::error::{Result, hinted};

/// Pixels of one image in memory: beyond it a header is taken for hostile. About 13,000 × 13,000.
const MAX_BYTES: u64 = 512 << 20;

/// Longer side over shorter side.
const MAX_ASPECT: u32 = 100;

const HINT: &str = "replace or remove the file, or leave bad images out with --skip-bad-images";

/// Decodes `bytes`; an error names `path`.
pub fn decode(bytes: &[u8], path: &str) -> Result<RgbImage> {
    let _span = tracing::debug_span!("decode").entered();
    // Decoders have panicked on damaged files before; one file must not end the run, nor escape `skip_bad`.
    let decoded = std::panic::catch_unwind(|| decode_any(bytes, path))
        .unwrap_or_else(|_| Err("the decoder panicked".to_string()))
        .and_then(no_line);
    decoded.map_err(|reason| hinted(format!("{path}: {reason}"), HINT))
}

/// Refuses what would grow without bound when its shorter side is scaled to a model's size.
fn no_line(image: RgbImage) -> std::result::Result<RgbImage, String> {
    let (width, height) = image.dimensions();
    match width.max(height) / width.min(height).max(1) > MAX_ASPECT {
        true => Err(format!(
            "{width}×{height} pixels: one side is more than {MAX_ASPECT} times the other"
        )),
        false => Ok(image),
    }
}

fn decode_any(bytes: &[u8], path: &str) -> std::result::Result<RgbImage, String> {
    if bytes.is_empty() {
        return Err("the file is empty".to_string());
    }
    match ImageKind::of_content(bytes) {
        Some(ImageKind::Jpeg) => jpeg(bytes, path),
        Some(ImageKind::Png) => other(bytes, ImageKind::Png, ImageFormat::Png),
        Some(ImageKind::WebP) => other(bytes, ImageKind::WebP, ImageFormat::WebP),
        Some(ImageKind::Bmp) => other(bytes, ImageKind::Bmp, ImageFormat::Bmp),
        Some(ImageKind::Pnm) => other(bytes, ImageKind::Pnm, ImageFormat::Pnm),
        Some(ImageKind::Tiff) => other(bytes, ImageKind::Tiff, ImageFormat::Tiff),
        None => Err(match other_content(bytes) {
            Some(found) => format!("expected JPEG, PNG, WebP, BMP, PNM or TIFF, found {found}"),
            None => "not an image".to_string(),
        }),
    }
}

/// All kinds but JPEG, by the crate `image`.
fn other(
    bytes: &[u8],
    kind: ImageKind,
    format: ImageFormat,
) -> std::result::Result<RgbImage, String> {
    let explain = |error: ImageError| match error {
        ImageError::Unsupported(error) => format!("{} not supported: {error}", kind.name()),
        error => format!("damaged {}: {error}", kind.name()),
    };
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(image::Limits::no_limits());
    let mut decoder = reader.into_decoder().map_err(explain)?;
    let (width, height) = decoder.dimensions();
    let colour = decoder.color_type();
    // What is held at once in the worst case: the decoder's own samples, then RGB or RGBA of 8 bits.
    let expanded = if colour.has_alpha() { 4 } else { 3 };
    fits(width, height, expanded.max(colour.bytes_per_pixel().into()))?;
    let mut limits = image::Limits::no_limits();
    limits.max_alloc = Some(2 * MAX_BYTES);
    decoder.set_limits(limits).map_err(explain)?;
    Ok(over_white(
        DynamicImage::from_decoder(decoder).map_err(explain)?,
    ))
}

/// Refuses a size that a header claims before anything is allocated for it.
fn fits(width: u32, height: u32, bytes_per_pixel: u64) -> std::result::Result<(), String> {
    match u64::from(width) * u64::from(height) > MAX_BYTES / bytes_per_pixel {
        true => Err(format!(
            "{width}×{height} pixels of {bytes_per_pixel} bytes are more than {} MiB",
            MAX_BYTES >> 20
        )),
        false => Ok(()),
    }
}

fn jpeg(bytes: &[u8], path: &str) -> std::result::Result<RgbImage, String> {
    let picture = jpeg::decode(bytes, |width, height| fits(width, height, 3));
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

/// RGB of any image; c = c·a + 1·(1−a) where it has transparency.
fn over_white(image: DynamicImage) -> RgbImage {
    if !image.color().has_alpha() {
        return image.into_rgb8();
    }
    let image = image.into_rgba8();
    let (width, height) = image.dimensions();
    RgbImage::from_fn(width, height, |x, y| {
        let [r, g, b, a] = image.get_pixel(x, y).0.map(u32::from);
        image::Rgb([r, g, b].map(|c| ((c * a + 255 * (255 - a) + 127) / 255) as u8))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    macro_rules! bytes {
        ($name:literal) => {
            include_bytes!(concat!("../../tests/data/images/", $name)).as_slice()
        };
    }

    /// The middles of the four quarters, each within 3 of `expected`.
    fn shows(name: &str, bytes: &[u8], expected: [[u8; 3]; 4]) {
        let image = decode(bytes, name).unwrap();
        assert_eq!(image.dimensions(), (16, 16), "{name}");
        for ((x, y), rgb) in [(4, 4), (12, 4), (4, 12), (12, 12)]
            .into_iter()
            .zip(expected)
        {
            let found = image.get_pixel(x, y).0;
            let near = found.iter().zip(rgb).all(|(a, b)| a.abs_diff(b) <= 3);
            assert!(near, "{name}: {found:?}, expected {rgb:?} at {x}, {y}");
        }
    }

    const COLOURS: [[u8; 3]; 4] = [[220, 20, 20], [20, 200, 20], [20, 20, 210], [100; 3]];
    const GRAYS: [[u8; 3]; 4] = [[30; 3], [90; 3], [160; 3], [230; 3]];
    const WHITE: [u8; 3] = [255; 3];

    #[test]
    fn every_kind_of_jpeg_shows_its_colours() {
        shows("rgb", bytes!("rgb.jpg"), COLOURS);
        shows("progressive", bytes!("progressive.jpg"), COLOURS);
        shows("RGB components", bytes!("keep_rgb.jpg"), COLOURS);
        shows("CMYK", bytes!("cmyk.jpg"), COLOURS);
        shows("YCCK", bytes!("ycck.jpg"), COLOURS);
        shows(
            "EXIF orientation is ignored",
            bytes!("orientation.jpg"),
            COLOURS,
        );
        shows("gray", bytes!("gray.jpg"), GRAYS);
    }

    #[test]
    fn every_kind_of_png_and_webp_shows_its_colours() {
        shows("rgb", bytes!("rgb.png"), COLOURS);
        shows("palette", bytes!("palette.png"), COLOURS);
        shows("16 bits", bytes!("rgb16.png"), COLOURS);
        shows("gray", bytes!("gray.png"), GRAYS);
        shows("gray, 16 bits", bytes!("gray16.png"), GRAYS);
        shows("lossy WebP", bytes!("lossy.webp"), COLOURS);
    }

    #[test]
    fn a_picture_that_is_a_line_is_refused() -> Result<()> {
        let png = |width, height| -> Result<Vec<u8>> {
            let mut bytes = Cursor::new(Vec::new());
            RgbImage::new(width, height).write_to(&mut bytes, ImageFormat::Png)?;
            Ok(bytes.into_inner())
        };
        assert_eq!(decode(&png(1, 100)?, "x.png")?.dimensions(), (1, 100));
        for (width, height) in [(1, 101), (5000, 2)] {
            let (text, _) =
                crate::error::report(&decode(&png(width, height)?, "x.png").unwrap_err());
            assert!(
                text.contains("x.png") && text.contains("100 times"),
                "{text}"
            );
        }
        Ok(())
    }

    #[test]
    fn transparency_shows_white() {
        let [red, green, _, gray] = COLOURS;
        let expected = [red, green, WHITE, [177; 3]];
        shows("rgba", bytes!("rgba.png"), expected);
        shows("WebP", bytes!("alpha.webp"), expected);
        shows(
            "palette",
            bytes!("palette_transparent.png"),
            [red, green, WHITE, gray],
        );
        let gray_alpha = bytes!("gray_alpha.png");
        shows("gray", gray_alpha, [GRAYS[0], GRAYS[1], WHITE, [242; 3]]);
    }

    #[test]
    fn what_is_damaged_is_an_error_with_its_path() {
        let fails = |bytes: &[u8], why: &str| {
            let error = decode(bytes, "some/path.jpg").unwrap_err().to_string();
            assert!(
                error.starts_with("some/path.jpg: ") && error.contains(why),
                "{error}"
            );
        };
        fails(b"", "empty");
        fails(b"not an image at all", "not an image");
        fails(b"BM\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "damaged BMP");
        fails(b"GIF89a\0\0\0\0\0\0\0\0\0\0", "found GIF");
        for jpeg in [
            bytes!("rgb.jpg"),
            bytes!("progressive.jpg"),
            bytes!("cmyk.jpg"),
        ] {
            for length in [3, jpeg.len() / 2, jpeg.len() - 30, jpeg.len() - 2] {
                fails(&jpeg[..length], "damaged JPEG");
            }
        }
        let mut stray = bytes!("rgb.jpg").to_vec();
        let scan = stray
            .windows(2)
            .rposition(|two| two == [0xFF, 0xDA])
            .unwrap();
        stray[scan + 14..scan + 16].copy_from_slice(&[0xFF, 0xD8]);
        fails(&stray, "damaged JPEG");
        for png in [bytes!("rgb.png"), bytes!("rgb16.png")] {
            fails(&png[..png.len() - 20], "damaged PNG");
        }
        fails(&bytes!("lossy.webp")[..40], "damaged WebP");
    }

    /// Thumbnails, a second image or padding, whatever markers these hold.
    #[test]
    fn what_follows_a_jpegs_end_is_left_out() -> Result<()> {
        for jpeg in [
            bytes!("rgb.jpg"),
            bytes!("progressive.jpg"),
            bytes!("orientation.jpg"),
        ] {
            let expected = decode(jpeg, "x")?;
            for more in [
                &[0; 7][..],
                b"\r\n",
                &[0xFF, 0xDA, 0, 8],
                &jpeg[..jpeg.len() / 2],
                jpeg,
            ] {
                assert!(decode(&[jpeg, more].concat(), "x")? == expected);
            }
        }
        Ok(())
    }

    #[test]
    fn a_hostile_header_is_refused_before_anything_is_allocated() {
        let mut png = bytes!("rgb.png").to_vec();
        png[16..24].copy_from_slice(&[0, 1, 0x86, 0xA0, 0, 1, 0x86, 0xA0]);
        let crc = crc32(&png[12..29]);
        png[29..33].copy_from_slice(&crc.to_be_bytes());
        let error = decode(&png, "x").unwrap_err().to_string();
        assert!(error.contains("100000×100000"), "{error}");

        let mut jpeg = bytes!("rgb.jpg").to_vec();
        let frame = jpeg.windows(2).position(|two| two == [0xFF, 0xC0]).unwrap();
        jpeg[frame + 5..frame + 9].fill(0xFF);
        let error = decode(&jpeg, "x").unwrap_err().to_string();
        assert!(error.contains("65535×65535"), "{error}");
    }

    fn crc32(bytes: &[u8]) -> u32 {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        crc.sum()
    }
}
