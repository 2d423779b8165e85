//! TIFF: gray, palettes, RGB and CMYK of up to 16 bits, with transparency or without; not packed,
//! by PackBits, LZW or Deflate.
//!
//! Other kinds are refused by name, those packed as JPEG too: their pixels would depend on another
//! decoder.

use std::borrow::Cow;
use std::io::Cursor;

use image::RgbImage;
use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::tags::Tag;
use tiff::{ColorType, TiffError};

use super::{MAX_BYTES, high_byte, over_white_pixel};
use crate::data::jpeg::through_black;

/// What the samples of a pixel mean.
#[derive(Clone, Copy, PartialEq)]
enum Meaning {
    Gray,
    /// Places in the colour map.
    Palette,
    Rgb,
    Cmyk,
}

pub fn decode(
    bytes: &[u8],
    fits: impl Fn(u32, u32, u64) -> Result<(), String>,
) -> Result<RgbImage, String> {
    let unsupported = |what: String| Err(format!("TIFF not supported: {what}"));
    let (bytes, is_palette) = places_as_gray(bytes);
    let mut decoder = Decoder::new(Cursor::new(&*bytes)).map_err(explain)?;
    let (width, height) = decoder.dimensions().map_err(explain)?;
    let formats = decoder.find_tag_unsigned_vec::<u16>(Tag::SampleFormat);
    for format in formats.map_err(explain)?.unwrap_or_default() {
        match format {
            1 => {}
            2 => return unsupported("signed samples".to_string()),
            3 => return unsupported("floating-point samples".to_string()),
            _ => return unsupported(format!("samples of format {format}")),
        }
    }
    let colours = match is_palette {
        true => decoder.find_tag_unsigned_vec::<u16>(Tag::ColorMap),
        false => Ok(None),
    };
    let colours = colours.map_err(explain)?.unwrap_or_default();
    let extra = decoder.find_tag_unsigned_vec::<u16>(Tag::ExtraSamples);
    let extra = extra.map_err(explain)?.unwrap_or_default();
    let (meaning, samples, bits) = match decoder.colortype().map_err(explain)? {
        ColorType::Gray(bits @ (1 | 2 | 4 | 8)) if is_palette => (Meaning::Palette, 1, bits),
        other if is_palette => {
            let kind = format!("a palette for pixels of {other:?}");
            return unsupported(kind.replace(['{', '}'], ""));
        }
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
    let entries = 1 << bits.min(8);
    if meaning == Meaning::Palette && colours.len() < 3 * entries {
        return Err(format!(
            "damaged TIFF: {} values in a colour map of {entries} colours",
            colours.len()
        ));
    }
    let mut values = match found {
        DecodingResult::U8(values) if bits < 8 => {
            let white = if meaning == Meaning::Palette {
                entries - 1
            } else {
                255
            };
            unpacked(&values, width as usize, bits, white as u8)
        }
        DecodingResult::U8(values) => values,
        DecodingResult::U16(values) => values.into_iter().map(high_byte).collect(),
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
            // All reds, then all greens, then all blues.
            (Meaning::Palette, &[place, ..]) => {
                [0, 1, 2].map(|c| high_byte(colours[c * (colours.len() / 3) + usize::from(place)]))
            }
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

/// A copy of a file whose first picture is of palette's places, in which the header calls these
/// gray: the decoder unpacks gray ones only, and the two are stored alike.
fn places_as_gray(bytes: &[u8]) -> (Cow<'_, [u8]>, bool) {
    match palette_tag(bytes) {
        None => (Cow::Borrowed(bytes), false),
        Some(at) => {
            let mut copy = bytes.to_vec();
            let gray = if bytes[0] == b'I' { [1, 0] } else { [0, 1] };
            copy[at..at + 2].copy_from_slice(&gray);
            (Cow::Owned(copy), true)
        }
    }
}

/// Where the first picture's photometric interpretation lies, if that is a palette.
fn palette_tag(bytes: &[u8]) -> Option<usize> {
    const INTERPRETATION: u64 = 262;
    const SHORT: u64 = 3;
    const PALETTE: u64 = 3;
    let number = |at: usize, width: usize| -> Option<u64> {
        let digits = bytes.get(at..at.checked_add(width)?)?;
        let join = |number, byte: &u8| number << 8 | u64::from(*byte);
        Some(match bytes[0] {
            b'I' => digits.iter().rev().fold(0, join),
            _ => digits.iter().fold(0, join),
        })
    };
    // A classic file, and a BigTIFF: where the first directory's place is said, the widths of that
    // and of its count, the length of an entry and where its value is.
    let (said, place, count, entry, value) = match number(2, 2)? {
        42 => (4, 4, 2, 12, 8),
        43 => (8, 8, 8, 20, 12),
        _ => return None,
    };
    let directory = usize::try_from(number(said, place)?).ok()?;
    let entries = usize::try_from(number(directory, count)?).ok()?;
    let first = directory.checked_add(count)?;
    (0..entries.min(bytes.len() / entry))
        .map(|n| first.saturating_add(n * entry))
        .find(|&at| number(at, 2) == Some(INTERPRETATION))
        .filter(|&at| number(at + 2, 2) == Some(SHORT) && number(at + value, 2) == Some(PALETTE))
        .map(|at| at + value)
}

/// Samples of fewer than 8 bits, rows of which begin at a byte, spread over 0 to `white`.
fn unpacked(packed: &[u8], width: usize, bits: u8, white: u8) -> Vec<u8> {
    let each = usize::from(8 / bits);
    let largest = u8::MAX >> (8 - bits);
    packed
        .chunks_exact(width.div_ceil(each))
        .flat_map(|row| {
            (0..width).map(move |x| {
                let shift = 8 - bits * (x % each + 1) as u8;
                (row[x / each] >> shift & largest) * (white / largest)
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
