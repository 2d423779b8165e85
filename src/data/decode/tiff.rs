//! TIFF: gray, RGB and CMYK of up to 16 bits, with transparency or without; not packed, by
//! PackBits, LZW or Deflate.
//!
//! Other kinds are refused by name, those packed as JPEG too: their pixels would depend on another
//! decoder.

use std::io::Cursor;

use image::RgbImage;
use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::tags::Tag;
use tiff::{ColorType, TiffError};

use super::{MAX_BYTES, over_white_pixel};
use crate::data::jpeg::through_black;

/// What the samples of a pixel mean.
#[derive(Clone, Copy, PartialEq)]
enum Meaning {
    Gray,
    Rgb,
    Cmyk,
}

pub fn decode(
    bytes: &[u8],
    fits: impl Fn(u32, u32, u64) -> Result<(), String>,
) -> Result<RgbImage, String> {
    let unsupported = |what: String| Err(format!("TIFF not supported: {what}"));
    let mut decoder = Decoder::new(Cursor::new(bytes)).map_err(explain)?;
    let (width, height) = decoder.dimensions().map_err(explain)?;
    let formats = decoder.find_tag_unsigned_vec::<u16>(Tag::SampleFormat);
    if formats
        .map_err(explain)?
        .is_some_and(|formats| formats.iter().any(|&f| f != 1))
    {
        return unsupported("samples that are no unsigned integers".to_string());
    }
    let extra = decoder.find_tag_unsigned_vec::<u16>(Tag::ExtraSamples);
    let extra = extra.map_err(explain)?.unwrap_or_default();
    let (meaning, samples, bits) = match decoder.colortype().map_err(explain)? {
        ColorType::Gray(bits) => (Meaning::Gray, 1, bits),
        ColorType::RGB(bits) => (Meaning::Rgb, 3, bits),
        ColorType::RGBA(bits) => (Meaning::Rgb, 4, bits),
        ColorType::CMYK(bits) => (Meaning::Cmyk, 4, bits),
        ColorType::Multiband {
            bit_depth,
            num_samples: 2,
        } if matches!(extra[..], [1 | 2]) => (Meaning::Gray, 2, bit_depth),
        other => return unsupported(format!("pixels of {other:?}").replace(['{', '}'], "")),
    };
    if !matches!((bits, samples), (8 | 16, _) | (1 | 2 | 4, 1)) {
        return unsupported(format!("{bits} bits a sample"));
    }
    fits(
        width,
        height,
        samples.max(3) as u64 * u64::from(bits.div_ceil(8)),
    )?;
    let mut limits = Limits::default();
    limits.decoding_buffer_size = MAX_BYTES as usize;
    limits.intermediate_buffer_size = MAX_BYTES as usize;
    limits.ifd_value_size = bytes.len();
    decoder = decoder.with_limits(limits);
    let mut found = DecodingResult::U8(Vec::new());
    let layout = decoder.read_image_to_buffer(&mut found).map_err(explain)?;
    let mut values = match found {
        DecodingResult::U8(values) if bits < 8 => unpacked(&values, width as usize, bits),
        DecodingResult::U8(values) => values,
        DecodingResult::U16(values) => {
            let rounded = |v: u16| ((u32::from(v) + 128) / 257) as u8;
            values.into_iter().map(rounded).collect()
        }
        _ => return unsupported(format!("{bits} bits a sample")),
    };
    let pixels = width as usize * height as usize;
    if values.len() < pixels * samples {
        return Err("damaged TIFF: fewer pixels than it says".to_string());
    }
    if layout.planes > 1 {
        let planes = &values;
        values = (0..pixels)
            .flat_map(|at| (0..samples).map(move |sample| planes[sample * pixels + at]))
            .collect();
    }
    let alpha = match (meaning, samples) {
        (Meaning::Gray, 2) | (Meaning::Rgb, 4) => Some(extra.first() == Some(&1)),
        _ => None,
    };
    let rgb = values.chunks_exact(samples).take(pixels).flat_map(|pixel| {
        let rgb = match (meaning, pixel) {
            (Meaning::Cmyk, &[c, m, y, k]) => [c, m, y].map(|ink| through_black(ink, 255 - k)),
            (Meaning::Rgb, &[r, g, b, ..]) => [r, g, b],
            _ => [pixel[0]; 3],
        };
        match alpha {
            Some(multiplied) => {
                let a = pixel[samples - 1];
                match multiplied {
                    true => rgb.map(|c| c.saturating_add(255 - a)),
                    false => over_white_pixel(rgb, a),
                }
            }
            None => rgb,
        }
    });
    RgbImage::from_raw(width, height, rgb.collect())
        .ok_or_else(|| "damaged TIFF: fewer pixels than it says".to_string())
}

/// Samples of fewer than 8 bits, rows of which begin at a byte, spread over 0 to 255.
fn unpacked(packed: &[u8], width: usize, bits: u8) -> Vec<u8> {
    let each = usize::from(8 / bits);
    let largest = u8::MAX >> (8 - bits);
    packed
        .chunks_exact(width.div_ceil(each))
        .flat_map(|row| {
            (0..width).map(move |x| {
                let shift = 8 - bits * (x % each + 1) as u8;
                (row[x / each] >> shift & largest) * (255 / largest)
            })
        })
        .collect()
}

fn explain(error: TiffError) -> String {
    match error {
        TiffError::UnsupportedError(what) => format!("TIFF not supported: {what}"),
        TiffError::LimitsExceeded => format!("its parts are larger than {} MiB", MAX_BYTES >> 20),
        error => format!("damaged TIFF: {error}"),
    }
}
