//! Contact sheets: equal pictures in rows and columns, two pixels of white between them.

use std::io::Cursor;
use std::path::Path;

use ::image::{ImageFormat, Rgb, RgbImage, imageops};

use crate::error::{Context, Result};
use crate::store::atomic;

const GAP: u32 = 2;

/// `pictures` in rows of `columns`; a last row that is not full ends in white.
pub fn grid(pictures: &[RgbImage], columns: usize) -> Result<RgbImage> {
    let (w, h) = pictures
        .first()
        .context("a grid needs at least one picture")?
        .dimensions();
    anyhow::ensure!(
        pictures.iter().all(|p| p.dimensions() == (w, h)),
        "the pictures of a grid must all be {w}×{h}"
    );
    let columns = columns.clamp(1, pictures.len());
    let rows = pictures.len().div_ceil(columns);
    let side = |n: usize, each: u32| n as u32 * (each + GAP) - GAP;
    let mut sheet = RgbImage::from_pixel(side(columns, w), side(rows, h), Rgb([255, 255, 255]));
    for (i, picture) in pictures.iter().enumerate() {
        let (x, y) = ((i % columns) as u32, (i / columns) as u32);
        imageops::replace(
            &mut sheet,
            picture,
            i64::from(x * (w + GAP)),
            i64::from(y * (h + GAP)),
        );
    }
    Ok(sheet)
}

/// `picture` with every pixel repeated `times` in both directions, so that small pictures can be looked at.
pub fn enlarge(picture: &RgbImage, times: u32) -> RgbImage {
    let (w, h) = picture.dimensions();
    imageops::resize(picture, w * times, h * times, imageops::FilterType::Nearest)
}

/// Writes a PNG, whole or not at all.
pub fn save_png(picture: &RgbImage, path: &Path) -> Result<()> {
    let mut bytes = Vec::new();
    picture
        .write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png)
        .with_context(|| format!("cannot encode {}", path.display()))?;
    atomic::write_file(path, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(value: u8) -> RgbImage {
        RgbImage::from_pixel(3, 2, Rgb([value; 3]))
    }

    #[test]
    fn pictures_stand_in_rows_two_pixels_apart() -> Result<()> {
        let sheet = grid(&[plain(1), plain(2), plain(3)], 2)?;
        assert_eq!(sheet.dimensions(), (3 + 2 + 3, 2 + 2 + 2));
        let at = |x, y| sheet.get_pixel(x, y).0[0];
        assert_eq!([at(0, 0), at(5, 0), at(0, 4)], [1, 2, 3]);
        assert_eq!([at(3, 0), at(4, 1), at(0, 2), at(7, 5)], [255; 4]);
        Ok(())
    }

    #[test]
    fn a_grid_of_unequal_pictures_is_refused() {
        let error = grid(&[plain(1), RgbImage::new(2, 2)], 2).unwrap_err();
        assert!(error.to_string().contains("3×2"), "{error}");
        assert!(grid(&[], 2).is_err());
    }

    #[test]
    fn enlarging_repeats_whole_pixels() -> Result<()> {
        let sheet = enlarge(&grid(&[plain(1), plain(2)], 2)?, 4);
        assert_eq!(sheet.dimensions(), (32, 8));
        assert_eq!(sheet.get_pixel(11, 7).0[0], 1);
        assert_eq!(sheet.get_pixel(12, 0).0[0], 255);
        Ok(())
    }
}
