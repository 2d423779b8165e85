//! Resampling as in Pillow (`Resample.c`), with antialiasing: horizontal pass, then vertical.
//!
//! An output pixel x is a weighted mean of the input around (x + ½)·s, s = in / out; the filter's
//! support is stretched by max(s, 1). For u8 the weights are fixed-point numbers with 22 fractional
//! bits, and each pass rounds to u8. This is bit-identical to Pillow up to version 12. Version 13
//! starts with the cheaper pass, which gives different rounding if a tall image is shrunk;
//! published metrics come from earlier versions. For f32, sums are in f64 and nothing is clamped,
//! as in Pillow's mode `F`.

use image::RgbImage;

/// Fractional bits of a weight: 32, minus 8 for a pixel, minus 2 for sums above 1 and the sign.
const PRECISION: u32 = 32 - 8 - 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    Box,
    Bilinear,
    Bicubic,
    Lanczos,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Filter::Box => 0.5,
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    fn at(self, x: f64) -> f64 {
        let sinc = |x: f64| match x * std::f64::consts::PI {
            0.0 => 1.0,
            x => x.sin() / x,
        };
        let a = x.abs();
        match self {
            Filter::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Filter::Bilinear => (1.0 - a).max(0.0),
            // Keys' cubic with a = -1/2.
            Filter::Bicubic if a < 1.0 => ((1.5 * a) - 2.5) * a * a + 1.0,
            Filter::Bicubic if a < 2.0 => (((a - 5.0) * a + 8.0) * a - 4.0) * -0.5,
            Filter::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Filter::Bicubic | Filter::Lanczos => 0.0,
        }
    }
}

/// The weights of every output position: `weights[x]` starts at input position `first[x]`.
struct Taps {
    first: Vec<usize>,
    weights: Vec<Vec<f64>>,
}

impl Taps {
    fn new(input: usize, output: usize, filter: Filter) -> Self {
        let scale = input as f64 / output as f64;
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        let tap = |x: usize| {
            let center = (x as f64 + 0.5) * scale;
            // Both are truncated towards 0, as in C's conversion.
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(input);
            let mut weights: Vec<f64> = (first..end)
                .map(|i| filter.at((i as f64 - center + 0.5) / stretch))
                .collect();
            let sum: f64 = weights.iter().sum();
            if sum != 0.0 {
                weights.iter_mut().for_each(|w| *w /= sum);
            }
            (first, weights)
        };
        let (first, weights) = (0..output).map(tap).unzip();
        Self { first, weights }
    }

    fn fixed_point(&self) -> Vec<Vec<i32>> {
        let fixed = |w: &f64| {
            let scaled = w * f64::from(1 << PRECISION);
            (scaled + 0.5f64.copysign(scaled)) as i32
        };
        let rows = self.weights.iter();
        rows.map(|row| row.iter().map(fixed).collect()).collect()
    }
}

fn to_u8(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// `image` resized to width × height.
pub fn resize(image: &RgbImage, width: u32, height: u32, filter: Filter) -> RgbImage {
    let half = 1i32 << (PRECISION - 1);
    let (from_w, from_h) = (image.width() as usize, image.height() as usize);
    let (to_w, to_h) = (width as usize, height as usize);
    if from_w * from_h * to_w * to_h == 0 {
        return RgbImage::new(width, height);
    }
    let narrow: std::borrow::Cow<[u8]> = if from_w == to_w {
        image.as_raw().as_slice().into()
    } else {
        let taps = Taps::new(from_w, to_w, filter);
        let weights = taps.fixed_point();
        let mut out = vec![0u8; from_h * to_w * 3];
        let rows = image.as_raw().chunks_exact(from_w * 3);
        for (row, out) in rows.zip(out.chunks_exact_mut(to_w * 3)) {
            let targets = out.chunks_exact_mut(3).zip(&weights);
            for ((pixel, weights), &first) in targets.zip(&taps.first) {
                let mut sum = [half; 3];
                for (p, w) in row[first * 3..].chunks_exact(3).zip(weights) {
                    for c in 0..3 {
                        sum[c] += i32::from(p[c]) * w;
                    }
                }
                pixel.copy_from_slice(&sum.map(to_u8));
            }
        }
        out.into()
    };
    let pixels = if from_h == to_h {
        narrow.into_owned()
    } else {
        let taps = Taps::new(from_h, to_h, filter);
        let weights = taps.fixed_point();
        let mut out = vec![0u8; to_h * to_w * 3];
        let mut sums = vec![0i32; to_w * 3];
        let targets = out.chunks_exact_mut(to_w * 3).zip(&weights);
        for ((row, weights), &first) in targets.zip(&taps.first) {
            sums.fill(half);
            let sources = narrow[first * to_w * 3..].chunks_exact(to_w * 3);
            for (source, w) in sources.zip(weights) {
                for (sum, &p) in sums.iter_mut().zip(source) {
                    *sum += i32::from(p) * w;
                }
            }
            for (p, &sum) in row.iter_mut().zip(&sums) {
                *p = to_u8(sum);
            }
        }
        out
    };
    RgbImage::from_raw(width, height, pixels).expect("the buffer was made for width × height × 3")
}

/// Resamples [H,W,C] f32 from size (width, height) `from` to `to`.
pub fn resize_f32(
    pixels: &[f32],
    from: (usize, usize),
    to: (usize, usize),
    channels: usize,
    filter: Filter,
) -> Vec<f32> {
    let ((from_w, from_h), (to_w, to_h), c) = (from, to, channels);
    assert_eq!(
        pixels.len(),
        from_w * from_h * c,
        "pixels of {from:?} × {c}"
    );
    let mut sums = vec![0f64; to_w * c];
    let mut narrow = pixels.to_vec();
    if from_w != to_w {
        let taps = Taps::new(from_w, to_w, filter);
        narrow = Vec::with_capacity(from_h * to_w * c);
        for row in pixels.chunks_exact(from_w * c) {
            sums.fill(0.0);
            let targets = sums.chunks_exact_mut(c).zip(&taps.weights);
            for ((sum, weights), &first) in targets.zip(&taps.first) {
                for (p, w) in row[first * c..].chunks_exact(c).zip(weights) {
                    sum.iter_mut()
                        .zip(p)
                        .for_each(|(s, &p)| *s += f64::from(p) * w);
                }
            }
            narrow.extend(sums.iter().map(|&s| s as f32));
        }
    }
    if from_h == to_h {
        return narrow;
    }
    let taps = Taps::new(from_h, to_h, filter);
    let mut out = Vec::with_capacity(to_h * to_w * c);
    for (weights, &first) in taps.weights.iter().zip(&taps.first) {
        sums.fill(0.0);
        let sources = narrow[first * to_w * c..].chunks_exact(to_w * c);
        for (source, w) in sources.zip(weights) {
            sums.iter_mut()
                .zip(source)
                .for_each(|(s, &p)| *s += f64::from(p) * w);
        }
        out.extend(sums.iter().map(|&s| s as f32));
    }
    out
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The image that scripts/test_images.py resamples with Pillow.
    pub fn formula(width: u32, height: u32) -> RgbImage {
        let value = |x: u32, y: u32, c: u32| (x * x * 3 + y * y * 5 + x * y * 7 + c * 91) / 4;
        RgbImage::from_fn(width, height, |x, y| {
            image::Rgb(std::array::from_fn(|c| value(x, y, c as u32) as u8))
        })
    }

    const FILTERS: [(Filter, &str); 4] = [
        (Filter::Box, "box"),
        (Filter::Bilinear, "bilinear"),
        (Filter::Bicubic, "bicubic"),
        (Filter::Lanczos, "lanczos"),
    ];

    fn golden(name: &str) -> std::path::PathBuf {
        std::path::Path::new("tests/data/images").join(name)
    }

    #[test]
    fn u8_is_equal_to_pillow() {
        for (filter, name) in FILTERS {
            let expected = image::open(golden(&format!("resize_{name}.png"))).unwrap();
            let found = resize(&formula(37, 29), 16, 33, filter);
            assert_eq!(found, expected.into_rgb8(), "{name}");
        }
    }

    #[test]
    fn f32_is_equal_to_pillow() {
        let plane: Vec<f32> = formula(37, 29).pixels().map(|p| f32::from(p[1])).collect();
        for (filter, name) in FILTERS {
            let bytes = std::fs::read(golden(&format!("resize_{name}.f32"))).unwrap();
            let found = resize_f32(&plane, (37, 29), (9, 31), 1, filter);
            let expected: Vec<f32> = bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect();
            assert_eq!(found.len(), expected.len());
            for (a, b) in found.iter().zip(&expected) {
                assert!((a - b).abs() <= 1e-4, "{name}: {a} and {b}");
            }
        }
    }

    #[test]
    fn channels_do_not_mix() {
        let image = formula(21, 17);
        let values: Vec<f32> = image.as_raw().iter().map(|&p| f32::from(p)).collect();
        let together = resize_f32(&values, (21, 17), (8, 40), 3, Filter::Bicubic);
        for c in 0..3 {
            let plane: Vec<f32> = values.iter().skip(c).step_by(3).copied().collect();
            let alone = resize_f32(&plane, (21, 17), (8, 40), 1, Filter::Bicubic);
            assert!(together.iter().skip(c).step_by(3).eq(&alone));
        }
    }
}
