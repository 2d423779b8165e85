//! What every kind of image shows, and what is refused.

use super::*;
use crate::rng::{Purpose, Stream};

macro_rules! bytes {
    ($name:literal) => {
        include_bytes!(concat!("../../../tests/data/images/", $name)).as_slice()
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
        let (text, _) = crate::error::report(&decode(&png(width, height)?, "x.png").unwrap_err());
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
    fails(&bytes!("rgb.bmp")[..500], "damaged BMP");
    fails(&bytes!("rgb.ppm")[..500], "damaged PNM");
    fails(&bytes!("text.ppm")[..500], "damaged PNM");
    for (tiff, length) in [
        (bytes!("rgb_raw.tif"), 500),
        (bytes!("rgb_lzw.tif"), 100),
        (bytes!("rgb_deflate.tif"), 60),
    ] {
        fails(&tiff[..length], "damaged TIFF");
    }
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
fn every_kind_of_bmp_pnm_and_tiff_shows_its_colours() {
    shows("BMP", bytes!("rgb.bmp"), COLOURS);
    shows("BMP with a palette", bytes!("palette.bmp"), COLOURS);
    shows("PPM", bytes!("rgb.ppm"), COLOURS);
    shows("PPM as text, to 1000", bytes!("text.ppm"), COLOURS);
    shows("PPM to 100", bytes!("maximum_100.ppm"), COLOURS);
    shows("PGM", bytes!("gray.pgm"), GRAYS);
    shows("PGM to 1000", bytes!("maximum_1000.pgm"), GRAYS);
    let bits = [[0; 3], WHITE, WHITE, [0; 3]];
    shows("PBM", bytes!("bits.pbm"), bits);
    shows("PBM as text", bytes!("bits_text.pbm"), bits);
    shows("TIFF of bits", bytes!("bits.tif"), bits);
    shows("TIFF", bytes!("rgb_raw.tif"), COLOURS);
    shows("TIFF, PackBits", bytes!("rgb_packbits.tif"), COLOURS);
    shows("TIFF, LZW", bytes!("rgb_lzw.tif"), COLOURS);
    shows("TIFF, Deflate", bytes!("rgb_deflate.tif"), COLOURS);
    shows("BigTIFF", bytes!("big.tif"), COLOURS);
    shows("gray TIFF", bytes!("gray.tif"), GRAYS);
    shows("gray TIFF, 16 bits", bytes!("gray16.tif"), GRAYS);
    shows("CMYK TIFF", bytes!("cmyk.tif"), COLOURS);
    shows("TIFF with a palette", bytes!("palette.tif"), COLOURS);
    let [red, green, ..] = COLOURS;
    let over_white = [red, green, WHITE, [177; 3]];
    shows("TIFF with transparency", bytes!("rgba.tif"), over_white);
    let over_white = [GRAYS[0], GRAYS[1], WHITE, [242; 3]];
    shows(
        "gray TIFF with transparency",
        bytes!("gray_alpha.tif"),
        over_white,
    );
}

/// Every value of five and six bits, as Pillow expands them.
#[test]
fn a_bmp_of_16_bits_a_pixel_has_the_pixels_of_pillow() -> Result<()> {
    for (coding, masks, green) in [(0u32, &[][..], 5), (3, &[0xF800u32, 0x07E0, 0x001F][..], 6)] {
        let (largest, width) = ((1u32 << green) - 1, 64u32);
        let mut file = b"BM\0\0\0\0\0\0\0\0".to_vec();
        let number = |file: &mut Vec<u8>, number: u32| file.extend(number.to_le_bytes());
        number(&mut file, 54 + 4 * masks.len() as u32);
        for value in [40, width, 1, (16 << 16) | 1, coding, 2 * width, 0, 0, 0, 0] {
            number(&mut file, value);
        }
        masks.iter().for_each(|mask| number(&mut file, *mask));
        for i in 0..width {
            let (red, middle) = ((i % 32) << (green + 5), i.min(largest) << 5);
            let pixel = red | middle | (31 - i % 32);
            file.extend((pixel as u16).to_le_bytes());
        }
        let image = decode(&file, "x")?;
        for i in 0..width {
            let expected = [
                i % 32 * 255 / 31,
                i.min(largest) * 255 / largest,
                (31 - i % 32) * 255 / 31,
            ];
            assert_eq!(
                image.get_pixel(i, 0).0.map(u32::from),
                expected,
                "{coding} {i}"
            );
        }
    }
    Ok(())
}

/// As Pillow does with colours; its `convert("RGB")` clips gray samples at 255, so that a picture
/// is all white.
#[test]
fn of_16_bits_the_high_byte_counts() -> Result<()> {
    let samples: [u16; 8] = [0, 127, 128, 255, 256, 511, 32895, 65535];
    let expected = [0, 0, 0, 0, 1, 1, 128, 255];
    let pixels = samples.iter().flat_map(|sample| [*sample; 3]).collect();
    let colours = ImageBuffer::<image::Rgb<u16>, _>::from_raw(8, 1, pixels).unwrap();
    let gray = ImageBuffer::<image::Luma<u16>, _>::from_raw(8, 1, samples.to_vec()).unwrap();
    for image in [DynamicImage::from(colours), DynamicImage::from(gray)] {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, ImageFormat::Png)?;
        let decoded = decode(bytes.get_ref(), "x")?;
        assert_eq!(
            decoded.pixels().map(|p| p.0[1]).collect::<Vec<_>>(),
            expected
        );
    }
    Ok(())
}

/// By its kind, not as damaged, and without the look of a debugger.
#[test]
fn what_is_not_supported_is_refused_by_name() {
    let kind = |name: &str| std::fs::read(format!("tests/data/jpeg/{name}-3x17.jpg")).unwrap();
    for (bytes, expected) in [
        (
            kind("refused-12-bit"),
            "JPEG not supported: 12 bits a sample",
        ),
        (
            kind("refused-sof11"),
            "JPEG not supported: lossless arithmetic coding",
        ),
        (
            kind("refused-sof5"),
            "JPEG not supported: hierarchical coding",
        ),
        (
            kind("refused-two-components"),
            "JPEG not supported: 2 components",
        ),
        (bytes!("jpeg.tif").to_vec(), "TIFF not supported: "),
        (
            bytes!("float.tif").to_vec(),
            "TIFF not supported: floating-point samples",
        ),
        (b"P7\nWIDTH 1\n".to_vec(), "PNM not supported: PAM"),
        (
            b"PF\n1 1\n-1.0\n".to_vec(),
            "expected JPEG, PNG, WebP, BMP, PNM or TIFF, found PFM",
        ),
    ] {
        let error = decode(&bytes, "a").unwrap_err().to_string();
        assert!(error.starts_with(&format!("a: {expected}")), "{error}");
        let clean = !error.contains("damaged") && !error.contains(['"', '{', '`']);
        assert!(clean, "{error}");
    }
}

/// Counted as RGB or RGBA, whatever the file's own samples take.
#[test]
fn a_hostile_header_is_refused_before_anything_is_allocated() {
    let png = |name: &[u8], side: u32| {
        let mut png = name.to_vec();
        png[16..20].copy_from_slice(&side.to_be_bytes());
        png[20..24].copy_from_slice(&side.to_be_bytes());
        let crc = crc32(&png[12..29]);
        png[29..33].copy_from_slice(&crc.to_be_bytes());
        png
    };
    let changed = |bytes: &[u8], at: usize, new: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes[at..at + new.len()].copy_from_slice(new);
        bytes
    };
    let jpeg = bytes!("rgb.jpg");
    let frame = jpeg.windows(2).position(|two| two == [0xFF, 0xC0]).unwrap();
    for (bytes, expected) in [
        (
            png(bytes!("gray.png"), 22_000),
            "22000×22000 pixels of 3 bytes",
        ),
        (
            png(bytes!("palette.png"), 14_000),
            "14000×14000 pixels of 3 bytes",
        ),
        (
            png(bytes!("rgba.png"), 12_000),
            "12000×12000 pixels of 4 bytes",
        ),
        (
            png(bytes!("rgb16.png"), 10_000),
            "10000×10000 pixels of 6 bytes",
        ),
        (changed(jpeg, frame + 5, &[0xFF; 4]), "65535×65535 pixels"),
        (
            changed(bytes!("lossy.webp"), 26, &[0xFF, 0x3F, 0xFF, 0x3F]),
            "16383×16383 pixels",
        ),
        (
            changed(bytes!("rgb.bmp"), 18, &[0x60, 0xEA, 0, 0, 0x60, 0xEA, 0, 0]),
            "60000×60000 pixels",
        ),
        (b"P6 70000 70000 255\n".to_vec(), "70000×70000 pixels"),
    ] {
        let error = decode(&bytes, "x").unwrap_err().to_string();
        assert!(
            error.contains(expected) && error.contains("512 MiB"),
            "{error}"
        );
    }
    // More than its decoder counts to.
    let largest = png(bytes!("rgba.png"), i32::MAX as u32);
    let error = decode(&largest, "x").unwrap_err().to_string();
    assert!(error.contains("PNG of too many pixels"), "{error}");
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// Bytes changed, cut out and put in, by chance: an image or an error, soon, and never a panic.
/// `RDPM_MUTATIONS` asks for more than a few of each file.
#[test]
fn damaged_files_are_images_or_errors() -> Result<()> {
    let asked = std::env::var("RDPM_MUTATIONS").ok();
    let count: u64 = asked.map_or(Ok(100), |count| count.parse())?;
    let mut files: Vec<_> = std::fs::read_dir("tests/data/images")?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.retain(|path| ImageKind::of_name(&path.display().to_string()).is_some());
    files.sort();
    for (number, path) in (0..).zip(&files) {
        let whole = std::fs::read(path)?;
        for mutation in 0..count {
            let mut draws = Stream::new(mutation, Purpose::Noise, number, 0).draws();
            let mut bytes = whole.clone();
            for _ in 0..=draws.below(4) {
                // Most of what decides is in the head.
                let among = match draws.below(3) {
                    0 => bytes.len(),
                    _ => bytes.len().min(64),
                };
                let at = draws.below(among.max(1) as u32) as usize;
                let byte = draws.below(256) as u8;
                match draws.below(8) {
                    _ if bytes.is_empty() => {}
                    0 => bytes.truncate(at),
                    1 => drop(bytes.remove(at)),
                    2 => bytes.insert(at, byte),
                    3 => bytes[at] = 0xFF,
                    4 => bytes[at] ^= 1 << (byte % 8),
                    _ => bytes[at] = byte,
                }
            }
            let begin = std::time::Instant::now();
            let decoded = decode_any(&bytes, "x", Limits::OF_DATA);
            let (seconds, path) = (begin.elapsed().as_secs(), path.display());
            assert!(seconds < 20, "{path}, mutation {mutation}: {seconds} s");
            if let Ok(image) = decoded {
                assert!(image.as_raw().len() as u64 <= MAX_BYTES);
            }
        }
    }
    Ok(())
}
