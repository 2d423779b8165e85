//! The demo's data: ten classes of drawn shapes and textures, 32×32; a source without files.
//!
//! Drawing i is a function of (seed, i) only, and its class is i mod 10. A bright shape of any hue
//! is on a dark background of any colour with a linear gradient; each pixel is the mean of 3×3
//! samples. The shapes and ranges are a recipe that a small model is known to learn in minutes.

use image::{Rgb, RgbImage};

use super::{Classes, Example, Source};
use crate::error::Result;
use crate::rng::{Purpose, Stream};

/// The classes, by index.
pub const NAMES: [&str; 10] = [
    "disc", "square", "triangle", "star", "ring", "cross", "moon", "stripes", "checkers", "dots",
];

/// Height and width of a drawing.
pub const SIZE: usize = 32;

/// Samples along a pixel's side.
const SAMPLES: usize = 3;

/// Ranges that a drawing's parameters are drawn from; both coordinates and colours are in -1..1.
struct Ranges {
    /// Half-width of the shape.
    scale: (f32, f32),
    /// Rotation in radians.
    rotation: (f32, f32),
    /// Offset of the shape's centre, in x and y.
    shift: (f32, f32),
    saturation: (f32, f32),
    /// Each channel of the background.
    ground: (f32, f32),
    /// Height of the background's gradient.
    ramp: (f32, f32),
    /// Radius of the star's inner corners, relative to that of its points.
    star: f32,
}

const RANGES: Ranges = Ranges {
    scale: (0.75, 0.9),
    rotation: (-0.25, 0.25),
    shift: (-0.1, 0.1),
    saturation: (0.2, 0.9),
    ground: (-1.0, -0.3),
    ramp: (0.0, 0.3),
    star: 0.5,
};

/// A set of drawings.
#[derive(Debug)]
pub struct Shapes {
    seed: u64,
    len: usize,
    classes: Classes,
}

impl Shapes {
    /// Drawings 0..len of `seed`; other seeds give other drawings.
    pub fn new(seed: u64, len: usize) -> Self {
        let classes = Classes::named(NAMES);
        Self { seed, len, classes }
    }
}

impl Source for Shapes {
    fn len(&self) -> usize {
        self.len
    }

    fn classes(&self) -> &Classes {
        &self.classes
    }

    fn read(&self, index: usize) -> Result<Example> {
        let label = (index % NAMES.len()) as u32;
        Ok(Example {
            image: draw(self.seed, index as u64, label),
            label,
            key: format!("{}/{index:06}", NAMES[label as usize]),
        })
    }

    fn fingerprint(&self) -> Result<String> {
        Ok(format!("shapes/1 seed {} count {}", self.seed, self.len))
    }
}

/// Drawing number `index`, a shape of class `label`.
fn draw(seed: u64, index: u64, label: u32) -> RgbImage {
    let mut u = [0f32; 12];
    Stream::new(seed, Purpose::Drawing, index, 0).fill_uniform(&mut u);
    let within = |u: f32, (low, high): (f32, f32)| low + (high - low) * u;
    let scale = within(u[0], RANGES.scale);
    let (sin, cos) = within(u[1], RANGES.rotation).sin_cos();
    let center = [within(u[2], RANGES.shift), within(u[3], RANGES.shift)];
    let figure = bright(u[4], within(u[5], RANGES.saturation));
    let ground = [u[6], u[7], u[8]].map(|u| within(u, RANGES.ground));
    let (ramp_y, ramp_x) = (u[9] * std::f32::consts::TAU).sin_cos();
    let ramp = within(u[10], RANGES.ramp);

    // Position of sample k along a side, in -1..1.
    let place = |k: usize| (k as f32 + 0.5) / (SIZE * SAMPLES) as f32 * 2.0 - 1.0;
    RgbImage::from_fn(SIZE as u32, SIZE as u32, |px, py| {
        let (px, py) = (px as usize * SAMPLES, py as usize * SAMPLES);
        let is_figure = |k: &usize| {
            let x = place(px + k % SAMPLES) - center[0];
            let y = place(py + k / SAMPLES) - center[1];
            is_inside(
                label,
                (cos * x + sin * y) / scale,
                (cos * y - sin * x) / scale,
            )
        };
        let inside = (0..SAMPLES * SAMPLES).filter(is_figure).count();
        let share = inside as f32 / (SAMPLES * SAMPLES) as f32;
        let middle = SAMPLES / 2;
        let slope = ramp * (ramp_x * place(px + middle) + ramp_y * place(py + middle));
        Rgb(std::array::from_fn(|c| {
            let colour = (ground[c] + slope) * (1.0 - share) + figure[c] * share;
            ((colour.clamp(-1.0, 1.0) + 1.0) * 127.5).round() as u8
        }))
    })
}

/// Full brightness at a hue in 0..1: 1 in the strongest channel, 1 - 2·saturation in the weakest.
fn bright(hue: f32, saturation: f32) -> [f32; 3] {
    [0.0, 2.0, 4.0].map(|offset| {
        let distance = ((hue * 6.0 + offset).rem_euclid(6.0) - 3.0).abs() - 1.0;
        1.0 - 2.0 * saturation * distance.clamp(0.0, 1.0)
    })
}

/// Whether (u, v) is inside the shape of class `label`; shapes about fill the unit disc, and the
/// last three classes fill the plane.
fn is_inside(label: u32, u: f32, v: f32) -> bool {
    let r2 = u * u + v * v;
    match label {
        0 => r2 < 0.8,
        1 => u.abs().max(v.abs()) < 0.8,
        2 => (-v).max((0.866 * u + 0.5 * v).max(0.5 * v - 0.866 * u)) < 0.52,
        3 => is_in_star(u, v),
        4 => r2 < 1.0 && r2 > 0.36,
        5 => {
            (u.abs() / 0.3)
                .max(v.abs())
                .min((v.abs() / 0.3).max(u.abs()))
                < 1.0
        }
        6 => r2 < 1.0 && (u - 0.5) * (u - 0.5) + v * v > 0.6,
        7 => (u * 6.0).sin() > 0.0,
        8 => ((u * 4.0).sin() > 0.0) != ((v * 4.0).sin() > 0.0),
        _ => (u.rem_euclid(1.0) - 0.5).powi(2) + (v.rem_euclid(1.0) - 0.5).powi(2) < 0.1,
    }
}

/// A five-pointed star of radius 1.1: folded to half a point, and one side of the line from point
/// to inner corner.
fn is_in_star(u: f32, v: f32) -> bool {
    use std::f32::consts::PI;
    let fifth = 2.0 * PI / 5.0;
    let angle = ((v.atan2(u) + PI / 5.0).rem_euclid(fifth) - PI / 5.0).abs();
    let radius = (u * u + v * v).sqrt() / 1.1;
    let (y, x) = angle.sin_cos();
    let (x, y) = (radius * x, radius * y);
    let (corner_x, corner_y) = (RANGES.star * 0.809, RANGES.star * 0.588);
    (x - 1.0) * corner_y - y * (corner_x - 1.0) < 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawing_depends_on_seed_and_number_only() {
        let image = |seed, len, i| Shapes::new(seed, len).read(i).unwrap().image;
        assert_eq!(image(1, 100, 42), image(1, 50, 42));
        assert_ne!(image(1, 100, 42), image(2, 100, 42));
        assert_ne!(image(1, 100, 42), image(1, 100, 52));
    }

    #[test]
    fn every_class_has_a_figure_brighter_than_its_ground() {
        let shapes = Shapes::new(5, 1000);
        for i in 0..1000 {
            let Example { image, label, .. } = shapes.read(i).unwrap();
            assert_eq!(label as usize, i % 10);
            let brightest = |p: &Rgb<u8>| p.0.into_iter().max() == Some(255);
            let figure = image.pixels().filter(|p| brightest(p)).count();
            let share = figure as f32 / (SIZE * SIZE) as f32;
            assert!(
                (0.08..0.75).contains(&share),
                "{}: {share}",
                NAMES[label as usize]
            );
        }
    }

    #[test]
    fn edges_are_smooth() {
        let image = Shapes::new(0, 1).read(0).unwrap().image;
        let between = image
            .pixels()
            .filter(|p| (160..250).contains(&p.0.into_iter().max().unwrap()));
        assert!(between.count() > 10);
    }
}
