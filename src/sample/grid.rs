//! Image grids: images of equal size in rows and columns, separated by two white pixels. Small
//! images are enlarged by an integer factor, so that they are easy to see.

use std::path::Path;
use std::str::FromStr;

use ::image::codecs::png::PngEncoder;
use ::image::{ExtendedColorType, ImageEncoder, Rgb, RgbImage, imageops};

use crate::error::{Context, Result, usage};
use crate::store::atomic;

const GAP: u64 = 2;

/// With an automatic factor, images on a sheet are at least this wide,
const SEEN: u64 = 128;

/// unless the sheet would become wider or higher than this.
const LONGEST: u64 = 4096;

/// Maximum width and height of a sheet: many programs cannot open larger images, and it takes 12
/// GiB.
const LIMIT: u64 = 1 << 16;

/// The factor by which images are enlarged on a sheet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scale {
    /// The smallest integer factor that makes images 128 pixels wide, or the largest that keeps the
    /// sheet within 4096 pixels.
    #[default]
    Auto,
    /// Repeats every pixel this many times in both directions; 1 keeps the size.
    Times(u32),
}

impl FromStr for Scale {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if text == "auto" {
            return Ok(Scale::Auto);
        }
        match text.parse() {
            Ok(times @ 1..=64) => Ok(Scale::Times(times)),
            _ => Err("a factor is auto, or a whole number from 1 to 64".to_string()),
        }
    }
}

impl std::fmt::Display for Scale {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Scale::Auto => f.write_str("auto"),
            Scale::Times(times) => write!(f, "{times}"),
        }
    }
}

/// The dimensions of a sheet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    columns: usize,
    /// Size of an image, not enlarged.
    image: (u32, u32),
    times: u32,
    /// Size of the sheet.
    pub size: (u32, u32),
}

impl Layout {
    /// A sheet of `count` images of `width`×`height` in rows of `columns`.
    ///
    /// Errors: the sheet would be larger than most programs can open.
    pub fn new(count: usize, image: (u32, u32), columns: usize, scale: Scale) -> Result<Self> {
        let columns = columns.clamp(1, count.max(1));
        let rows = count.div_ceil(columns);
        let sides = |times: u32| {
            let side = |n: usize, each: u32| {
                (n as u64 * (u64::from(each) * u64::from(times) + GAP)).saturating_sub(GAP)
            };
            (side(columns, image.0), side(rows, image.1))
        };
        let fits = |times: &u32| sides(*times).0.max(sides(*times).1) <= LONGEST;
        let times = match scale {
            Scale::Times(times) => times,
            Scale::Auto => {
                let wanted = SEEN.div_ceil(u64::from(image.0).max(1)) as u32;
                (1..=wanted).rev().find(fits).unwrap_or(1)
            }
        };
        let (width, height) = sides(times);
        if width.max(height) > LIMIT {
            return Err(usage(
                format!("a sheet of {count} images would have {width}×{height} pixels"),
                "a lower --scale or fewer images make a smaller one; a folder or an .npz holds any \
                 number",
            ));
        }
        Ok(Layout {
            columns,
            image,
            times,
            size: (width as u32, height as u32),
        })
    }
}

/// `images` in rows of `columns`; an incomplete last row is padded with white.
pub fn grid(images: &[RgbImage], columns: usize, scale: Scale) -> Result<RgbImage> {
    let size = images
        .first()
        .context("a grid needs at least one image")?
        .dimensions();
    anyhow::ensure!(
        images.iter().all(|image| image.dimensions() == size),
        "the images of a grid must all be {}×{}",
        size.0,
        size.1
    );
    let layout = Layout::new(images.len(), size, columns, scale)?;
    let (width, height) = layout.size;
    let mut sheet = RgbImage::from_pixel(width, height, Rgb([255, 255, 255]));
    for (i, image) in images.iter().enumerate() {
        let at = |n: usize, each: u32| {
            n as i64 * (i64::from(each) * i64::from(layout.times) + GAP as i64)
        };
        let (x, y) = (i % layout.columns, i / layout.columns);
        let (x, y) = (at(x, layout.image.0), at(y, layout.image.1));
        imageops::replace(&mut sheet, &enlarge(image, layout.times), x, y);
    }
    Ok(sheet)
}

/// `image` with every pixel repeated `times` in both directions.
fn enlarge(image: &RgbImage, times: u32) -> RgbImage {
    let (w, h) = image.dimensions();
    RgbImage::from_fn(w * times, h * times, |x, y| {
        *image.get_pixel(x / times, y / times)
    })
}

/// The bytes of a PNG; in memory this fails only for an image without pixels.
pub fn png(image: &RgbImage) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let (width, height) = image.dimensions();
    PngEncoder::new(&mut bytes).write_image(image, width, height, ExtendedColorType::Rgb8)?;
    Ok(bytes)
}

/// Writes a PNG, completely or not at all.
pub fn save_png(image: &RgbImage, path: &Path) -> Result<()> {
    let bytes = png(image).with_context(|| format!("cannot encode {}", path.display()))?;
    atomic::write_file(path, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AS_IS: Scale = Scale::Times(1);

    fn plain(value: u8) -> RgbImage {
        RgbImage::from_pixel(3, 2, Rgb([value; 3]))
    }

    #[test]
    fn images_stand_in_rows_two_pixels_apart() -> Result<()> {
        let sheet = grid(&[plain(1), plain(2), plain(3)], 2, AS_IS)?;
        assert_eq!(sheet.dimensions(), (3 + 2 + 3, 2 + 2 + 2));
        let at = |x, y| sheet.get_pixel(x, y).0[0];
        assert_eq!([at(0, 0), at(5, 0), at(0, 4)], [1, 2, 3]);
        assert_eq!([at(3, 0), at(4, 1), at(0, 2), at(7, 5)], [255; 4]);
        Ok(())
    }

    #[test]
    fn a_grid_of_unequal_images_is_refused() {
        let error = grid(&[plain(1), RgbImage::new(2, 2)], 2, AS_IS).unwrap_err();
        assert!(error.to_string().contains("3×2"), "{error}");
        assert!(grid(&[], 2, AS_IS).is_err());
    }

    #[test]
    fn enlarging_repeats_whole_pixels_and_keeps_the_gap() -> Result<()> {
        let image = RgbImage::from_fn(3, 2, |x, y| Rgb([(10 * y + x) as u8; 3]));
        let sheet = grid(&[image.clone(), plain(99)], 2, Scale::Times(4))?;
        assert_eq!(sheet.dimensions(), (12 + 2 + 12, 8));
        for (x, y, pixel) in sheet.enumerate_pixels() {
            let expected = match x {
                0..12 => image.get_pixel(x / 4, y / 4).0,
                12..14 => [255; 3],
                _ => [99; 3],
            };
            assert_eq!(pixel.0, expected, "{x}, {y}");
        }
        Ok(())
    }

    #[test]
    fn small_images_are_seen_and_large_sheets_stay_within_bounds() -> Result<()> {
        let times = |count, side: u32, columns| -> Result<(u32, (u32, u32))> {
            let layout = Layout::new(count, (side, side), columns, Scale::Auto)?;
            Ok((layout.times, layout.size))
        };
        assert_eq!(times(1, 16, 1)?, (8, (128, 128)));
        assert_eq!(times(100, 32, 10)?, (4, (1298, 1298)));
        assert_eq!(times(16, 64, 4)?.0, 2);
        assert_eq!(times(16, 100, 4)?.0, 2);
        assert_eq!(times(16, 128, 4)?.0, 1);
        assert_eq!(times(16, 256, 4)?.0, 1);
        // 32 images of 4 · 32 pixels would exceed 4096.
        assert_eq!(times(1000, 32, 32)?, (3, (3134, 3134)));
        // Images keep their size even if the sheet is larger.
        assert_eq!(times(1000, 256, 32)?.0, 1);
        Ok(())
    }

    #[test]
    fn a_sheet_that_nobody_could_open_is_refused() {
        let error = Layout::new(10_000, (64, 64), 100, Scale::Times(64)).unwrap_err();
        let (text, code) = crate::error::report(&error);
        assert!(text.contains("409798×409798"), "{text}");
        assert_eq!(code, 2, "{text}");
    }

    #[test]
    fn a_factor_is_auto_or_a_whole_number() {
        assert_eq!("auto".parse(), Ok(Scale::Auto));
        assert_eq!("3".parse(), Ok(Scale::Times(3)));
        for wrong in ["0", "65", "1.5", "-1", "x", ""] {
            assert!(wrong.parse::<Scale>().is_err(), "{wrong}");
        }
        for scale in [Scale::Auto, Scale::Times(7)] {
            assert_eq!(scale.to_string().parse(), Ok(scale));
        }
    }
}
