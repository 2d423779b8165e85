//! Bilinear resize without antialias: each value is interpolated from the four nearest pixels.
//!
//! Point i of n is at i·(N/n) with pixel coordinates at corners (TensorFlow 1), or at max(0, (i +
//! ½)·(N/n) − ½) with coordinates at pixel centers (PyTorch, `align_corners=False`).

use image::RgbImage;

use super::SIDE;

/// The origin of pixel coordinates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Centres {
    Corner,
    Middle,
}

/// The two pixels around a point, and the weight of the second.
#[derive(Debug, Clone, Copy)]
struct Between {
    first: usize,
    second: usize,
    weight: f32,
}

impl Centres {
    fn along(self, from: usize, to: usize) -> Vec<Between> {
        let scale = from as f32 / to as f32;
        (0..to)
            .map(|i| {
                let at = match self {
                    Centres::Corner => i as f32 * scale,
                    Centres::Middle => ((i as f32 + 0.5) * scale - 0.5).max(0.0),
                };
                let first = (at as usize).min(from - 1);
                Between {
                    first,
                    second: (first + 1).min(from - 1),
                    weight: at - first as f32,
                }
            })
            .collect()
    }
}

#[cfg(feature = "cuda")]
impl Centres {
    /// The same two pixels and their weights for a GPU, along a side of `from` pixels.
    pub fn taps(self, from: usize) -> crate::ops::resample::Taps {
        let along = self.along(from, SIDE);
        crate::ops::resample::Taps {
            first: along.iter().map(|between| between.first as u32).collect(),
            weights: along
                .iter()
                .flat_map(|between| [1.0 - between.weight, between.weight])
                .collect(),
        }
    }
}

/// Fills `out` [299,299,3] with the resized `image`, in 0..255.
pub(super) fn resize(image: &RgbImage, centres: Centres, out: &mut [f32]) {
    let (width, height) = image.dimensions();
    let columns = centres.along(width as usize, SIDE);
    let pixels = image.as_raw();
    let stride = width as usize * 3;
    for (row, out) in centres
        .along(height as usize, SIDE)
        .into_iter()
        .zip(out.chunks_exact_mut(SIDE * 3))
    {
        let above = &pixels[row.first * stride..][..stride];
        let below = &pixels[row.second * stride..][..stride];
        for (column, out) in columns.iter().zip(out.chunks_exact_mut(3)) {
            for (c, out) in out.iter_mut().enumerate() {
                let across = |line: &[u8]| {
                    let left = f32::from(line[column.first * 3 + c]);
                    let right = f32::from(line[column.second * 3 + c]);
                    left + (right - left) * column.weight
                };
                let (top, bottom) = (across(above), across(below));
                *out = top + (bottom - top) * row.weight;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            image::Rgb([x as u8, y as u8, (x + y) as u8])
        })
    }

    #[test]
    fn a_ramp_shows_where_pixels_are_taken_to_be() {
        let mut out = vec![0f32; SIDE * SIDE * 3];
        let scale = 64.0 / SIDE as f32;
        resize(&ramp(64, 64), Centres::Corner, &mut out);
        let at = |out: &[f32], y: usize, x: usize| out[(y * SIDE + x) * 3];
        assert!((at(&out, 5, 100) - 100.0 * scale).abs() < 1e-4);
        // Beyond the last pixel's corner only that pixel counts.
        assert_eq!(at(&out, 5, 298), 63.0);
        resize(&ramp(64, 64), Centres::Middle, &mut out);
        assert!((at(&out, 5, 100) - (100.5 * scale - 0.5)).abs() < 1e-4);
        assert_eq!(at(&out, 5, 0), 0.0);
    }

    #[test]
    fn a_picture_of_the_right_size_stays_as_it_is() {
        let image = ramp(SIDE as u32, SIDE as u32);
        let expected: Vec<f32> = image.as_raw().iter().map(|&b| f32::from(b)).collect();
        for centres in [Centres::Corner, Centres::Middle] {
            let mut out = vec![0f32; SIDE * SIDE * 3];
            resize(&image, centres, &mut out);
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn a_single_pixel_fills_the_picture() {
        let image = RgbImage::from_pixel(1, 1, image::Rgb([7, 8, 9]));
        let mut out = vec![0f32; SIDE * SIDE * 3];
        resize(&image, Centres::Middle, &mut out);
        assert!(out.chunks_exact(3).all(|p| p == [7.0, 8.0, 9.0]));
    }
}
