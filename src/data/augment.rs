//! Turns an image of any size into a square of `size`: ADM's center crop, a random crop, or a
//! random resized crop; then an optional flip.
//!
//! Random numbers come from the stream (seed, Augment, number of the example). The first uniform
//! decides the flip and the following ones the crop, so that the flip does not depend on the kind
//! of crop. All resampling uses Pillow's bicubic filter (the bilinear filters of torchvision and
//! albumentations are blurrier or aliased) **[ours]**.

use image::RgbImage;
use image::imageops;

use super::resize::{Filter, Step, Window, resize, resize_window};
use crate::config::Crop;
use crate::rng::{Purpose, Stream};

/// How a training image is cropped and flipped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Augment {
    /// Height and width of the result.
    pub size: usize,
    pub crop: Crop,
    /// Mirror images at random, half of them.
    pub flip: bool,
}

/// Areas (as a share of the image) and aspect ratios of a random resized crop, and the number of
/// attempts, as in torchvision.
const AREA: (f64, f64) = (0.08, 1.0);
const ASPECT: (f64, f64) = (3.0 / 4.0, 4.0 / 3.0);
const TRIES: usize = 10;

/// Maximum number of uniforms per example: one for the flip, two for the position of a crop (and
/// one for padding to four), four for each attempt.
const DRAWS: usize = 4 + 4 * TRIES;

impl Augment {
    /// The crop of the image for example number `n` of a run, before [`Augment::flips`] mirrors it.
    pub fn cut(&self, image: &RgbImage, seed: u64, n: u64) -> RgbImage {
        let mut u = [0f32; DRAWS];
        Stream::new(seed, Purpose::Augment, n, 0).fill_uniform(&mut u);
        match self.crop {
            Crop::Center => center_crop(image, self.size),
            Crop::Random => shorter_side(image, self.size, |x, y| (pick(u[1], x), pick(u[2], y))),
            Crop::RandomResized => random_resized_crop(image, self.size, &u[4..]),
        }
    }

    /// Whether example number `n` is mirrored.
    pub fn flips(&self, seed: u64, n: u64) -> bool {
        let mut u = [0f32; 1];
        Stream::new(seed, Purpose::Augment, n, 0).fill_uniform(&mut u);
        self.flip && is_flipped(u[0])
    }
}

fn is_flipped(u: f32) -> bool {
    u < 0.5
}

/// ADM's center crop (guided-diffusion, `center_crop_arr`): halved with a box filter while the
/// shorter side is at least twice `size`, then resized to `size` by bicubic, then cropped.
pub fn center_crop(image: &RgbImage, size: usize) -> RgbImage {
    shorter_side(image, size, |x, y| (x / 2, y / 2))
}

/// The whole image with its shorter side resized to `size` as ADM does, of which both
/// [`center_crop`] and a random crop take a square; smaller images are enlarged.
pub fn whole(image: &RgbImage, size: usize) -> RgbImage {
    let (width, height, steps) = steps(image, size);
    let window = Window {
        columns: 0..width,
        rows: 0..height,
    };
    resize_window(image, &steps, window)
}

/// The square of `size` that lies at `place` in the [`whole`] image; `place` is given the largest
/// column and row.
fn shorter_side(
    image: &RgbImage,
    size: usize,
    place: impl FnOnce(usize, usize) -> (usize, usize),
) -> RgbImage {
    let (width, height, steps) = steps(image, size);
    let (x, y) = place(width - size, height - size);
    let window = Window {
        columns: x..x + size,
        rows: y..y + size,
    };
    resize_window(image, &steps, window)
}

/// Width and height of the [`whole`] image, and the way there.
fn steps(image: &RgbImage, size: usize) -> (usize, usize, Vec<Step>) {
    let (mut width, mut height) = (image.width() as usize, image.height() as usize);
    let mut steps = Vec::new();
    while width.min(height) >= 2 * size {
        (width, height) = (width / 2, height / 2);
        steps.push(Step {
            width,
            height,
            filter: Filter::Box,
        });
    }
    let scale = size as f64 / width.min(height) as f64;
    // Python rounds halves to even.
    let scaled = |side: usize| (side as f64 * scale).round_ties_even() as usize;
    let (width, height) = (scaled(width), scaled(height));
    steps.push(Step {
        width,
        height,
        filter: Filter::Bicubic,
    });
    (width, height, steps)
}

/// torchvision's `RandomResizedCrop`; `u` has four uniforms per attempt (area, aspect ratio, x, y).
fn random_resized_crop(image: &RgbImage, size: usize, u: &[f32]) -> RgbImage {
    let (w, h) = (f64::from(image.width()), f64::from(image.height()));
    let between = |(low, high): (f64, f64), u: f32| low + (high - low) * f64::from(u);
    let drawn = u.chunks_exact(4).find_map(|u| {
        let area = w * h * between(AREA, u[0]);
        let aspect = between((ASPECT.0.ln(), ASPECT.1.ln()), u[1]).exp();
        let cut_w = (area * aspect).sqrt().round_ties_even();
        let cut_h = (area / aspect).sqrt().round_ties_even();
        let fits = cut_w >= 1.0 && cut_w <= w && cut_h >= 1.0 && cut_h <= h;
        fits.then(|| {
            let (x, y) = (
                pick(u[2], (w - cut_w) as usize),
                pick(u[3], (h - cut_h) as usize),
            );
            (x, y, cut_w as usize, cut_h as usize)
        })
    });
    let (x, y, cut_w, cut_h) = drawn.unwrap_or_else(|| {
        // The largest center crop within the allowed aspect ratios.
        let cut_w = w.min((h * ASPECT.1).round_ties_even()) as usize;
        let cut_h = h.min((w / ASPECT.0).round_ties_even()) as usize;
        let middle = |side: f64, cut: usize| (side as usize - cut) / 2;
        (middle(w, cut_w), middle(h, cut_h), cut_w, cut_h)
    });
    let cut = imageops::crop_imm(image, x as u32, y as u32, cut_w as u32, cut_h as u32).to_image();
    resize(&cut, size as u32, size as u32, Filter::Bicubic)
}

/// Selects one of 0..=`last` by the uniform `u` in (0,1).
fn pick(u: f32, last: usize) -> usize {
    ((f64::from(u) * (last + 1) as f64) as usize).min(last)
}

#[cfg(test)]
mod tests {
    use super::super::resize::tests::formula;
    use super::*;

    fn ramp(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            image::Rgb([x as u8, y as u8, (x * y) as u8])
        })
    }

    fn augment(crop: Crop) -> Augment {
        Augment {
            size: 16,
            crop,
            flip: true,
        }
    }

    #[test]
    fn the_centre_crop_is_equal_to_adm() {
        for (w, h, size) in [
            (100, 75, 20),
            (131, 97, 16),
            (13, 21, 20),
            (20, 20, 20),
            (25, 47, 20),
        ] {
            let golden = format!("tests/data/images/crop_{w}x{h}_{size}.png");
            let expected = image::open(&golden).unwrap().into_rgb8();
            assert_eq!(center_crop(&formula(w, h), size), expected, "{golden}");
        }
    }

    #[test]
    fn an_example_depends_on_seed_and_number_only() {
        for crop in [Crop::Random, Crop::RandomResized] {
            let (a, image) = (augment(crop), ramp(40, 30));
            assert_eq!(a.cut(&image, 1, 7), a.cut(&image, 1, 7));
            assert!((0..20).any(|n| a.cut(&image, 1, n) != a.cut(&image, 1, 0)));
            assert!((0..20).any(|n| a.cut(&image, 2, n) != a.cut(&image, 1, n)));
        }
    }

    #[test]
    fn half_of_the_examples_are_mirrored_whatever_the_crop() {
        let flips = |crop| (0..1000).map(move |n| augment(crop).flips(3, n));
        let count = flips(Crop::Center).filter(|flips| *flips).count();
        assert!((450..550).contains(&count), "{count}");
        assert!(flips(Crop::Center).eq(flips(Crop::RandomResized)));
        let never = Augment {
            flip: false,
            ..augment(Crop::Center)
        };
        assert!(!(0..100).any(|n| never.flips(3, n)));
    }

    #[test]
    fn every_place_of_a_random_crop_is_reached_and_no_other() {
        let a = Augment {
            flip: false,
            ..augment(Crop::Random)
        };
        let image = ramp(19, 16);
        let mut seen = [0; 4];
        for n in 0..400 {
            seen[a.cut(&image, 0, n).get_pixel(0, 0)[0] as usize] += 1;
        }
        assert!(seen.iter().all(|&count| count > 50), "{seen:?}");
    }

    #[test]
    fn any_size_and_aspect_becomes_the_square() {
        for crop in [Crop::Center, Crop::Random, Crop::RandomResized] {
            for (w, h) in [
                (1, 1),
                (3, 200),
                (200, 3),
                (16, 16),
                (15, 17),
                (33, 32),
                (129, 64),
            ] {
                for n in 0..4 {
                    let out = augment(crop).cut(&ramp(w, h), 0, n);
                    assert_eq!(out.dimensions(), (16, 16), "{crop:?} of {w}×{h}");
                }
            }
        }
    }
}
