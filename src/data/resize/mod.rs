//! Resampling as in Pillow (`Resample.c`), with antialiasing: horizontal pass, then vertical.
//!
//! An output pixel x is a weighted mean of the input around (x + ½)·s, s = in / out; the filter's
//! support is stretched by max(s, 1). For u8 the weights are fixed-point numbers with 22 fractional
//! bits, and each pass rounds to u8. This is bit-identical to Pillow up to version 12. Version 13
//! starts with the cheaper pass, which gives different rounding if a tall image is shrunk;
//! published metrics come from earlier versions. For f32, sums are in f64 and nothing is clamped,
//! as in Pillow's mode `F`.

mod passes;
mod taps;
#[cfg(test)]
pub(super) mod tests;

use std::borrow::Cow;
use std::ops::Range;

use image::RgbImage;

use passes::{Part, horizontal, vertical};
use taps::Taps;

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

/// To which width and height, and how.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    pub width: usize,
    pub height: usize,
    pub filter: Filter,
}

/// Columns and rows of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    pub columns: Range<usize>,
    pub rows: Range<usize>,
}

/// `image` resized to width × height.
pub fn resize(image: &RgbImage, width: u32, height: u32, filter: Filter) -> RgbImage {
    let (width, height) = (width as usize, height as usize);
    let whole = Window {
        columns: 0..width,
        rows: 0..height,
    };
    let step = Step {
        width,
        height,
        filter,
    };
    resize_window(image, &[step], whole)
}

/// What `steps`, one after the other, make of `image`, cut to `window`: only what that depends on
/// is computed.
pub fn resize_window(image: &RgbImage, steps: &[Step], window: Window) -> RgbImage {
    let whole = (image.width() as usize, image.height() as usize);
    let sizes = steps.iter().map(|s| (s.width, s.height));
    let (width, height) = (window.columns.len() as u32, window.rows.len() as u32);
    if sizes.clone().chain([whole]).any(|(w, h)| w * h == 0) {
        return RgbImage::new(width, height);
    }
    // Backwards: what of each step's input the window depends on.
    let sources = [whole].into_iter().chain(sizes);
    let mut wanted = window;
    let mut passes: Vec<(Axis, Axis)> = Vec::with_capacity(steps.len());
    for (from, step) in sources.zip(steps).collect::<Vec<_>>().into_iter().rev() {
        let Window { columns, rows } = wanted;
        let across = Axis::new(from.0, step.width, step.filter, columns);
        let down = Axis::new(from.1, step.height, step.filter, rows);
        wanted = Window {
            columns: across.source.clone(),
            rows: down.source.clone(),
        };
        passes.push((across, down));
    }
    let pitch = 3 * whole.0;
    let first = wanted.rows.start * pitch + 3 * wanted.columns.start;
    let mut bytes = Cow::Borrowed(&image.as_raw()[first..]);
    let mut pitch = pitch;
    for (across, down) in passes.into_iter().rev() {
        let mut part = Part {
            bytes: &bytes,
            pitch,
            at: (across.source.start, down.source.start),
            size: (across.source.len(), down.source.len()),
        };
        let narrow = across
            .taps
            .map(|taps| horizontal(part, &taps.fixed_point()));
        if let Some(narrow) = &narrow {
            part = Part {
                bytes: narrow,
                pitch: 3 * across.wanted.len(),
                at: (across.wanted.start, part.at.1),
                size: (across.wanted.len(), part.size.1),
            };
        }
        let made = match down.taps {
            Some(taps) => vertical(part, &taps.fixed_point()),
            None => match narrow {
                Some(narrow) => narrow,
                None => part.to_vec(),
            },
        };
        (bytes, pitch) = (Cow::Owned(made), 3 * across.wanted.len());
    }
    let pixels = match bytes {
        Cow::Owned(pixels) => pixels,
        // No step: a cut.
        Cow::Borrowed(bytes) => Part {
            bytes,
            pitch,
            at: (wanted.columns.start, wanted.rows.start),
            size: (width as usize, height as usize),
        }
        .to_vec(),
    };
    RgbImage::from_raw(width, height, pixels).expect("passes make the pixels of the window")
}

/// A step along one axis.
struct Axis {
    /// None where it changes nothing.
    taps: Option<Taps>,
    /// What is wanted of the output.
    wanted: Range<usize>,
    /// What that takes of the input.
    source: Range<usize>,
}

impl Axis {
    fn new(from: usize, to: usize, filter: Filter, wanted: Range<usize>) -> Self {
        let taps = (from != to).then(|| Taps::new(from, to, filter, wanted.clone()));
        let source = taps.as_ref().map_or(wanted.clone(), Taps::reach);
        Self {
            taps,
            wanted,
            source,
        }
    }
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
        let taps = Taps::new(from_w, to_w, filter, 0..to_w);
        narrow = Vec::with_capacity(from_h * to_w * c);
        for row in pixels.chunks_exact(from_w * c) {
            sums.fill(0.0);
            for (sum, (first, weights)) in sums.chunks_exact_mut(c).zip(taps.iter()) {
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
    let taps = Taps::new(from_h, to_h, filter, 0..to_h);
    let mut out = Vec::with_capacity(to_h * to_w * c);
    for (first, weights) in taps.iter() {
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
