//! Converts components' samples, which may have lower resolution, to rows of the image.
//!
//! A component with half the columns or rows is interpolated with weights 3 : 1, which libjpeg
//! calls fancy upsampling; other ratios replicate samples.

use super::colour::{self, Space};
use super::frame::{Coding, Component, Frame};
use super::idct::Samples;
use super::{Result, unsupported};

/// Samples of a component.
pub struct Plane {
    width: usize,
    height: usize,
    stride: usize,
    /// [rows,stride]: whole MCUs.
    data: Vec<u8>,
}

impl Plane {
    pub fn new(component: &Component, unit: usize) -> Plane {
        let stride = component.padded_wide * unit;
        Plane {
            width: component.width,
            height: component.height,
            stride,
            data: vec![0; stride * component.padded_high * unit],
        }
    }

    /// Sets the block in block column `x` and block row `y`.
    #[inline(always)]
    pub fn put(&mut self, x: usize, y: usize, samples: Samples) {
        let from = 8 * (y * self.stride + x);
        let rows = self.data[from..].chunks_mut(self.stride);
        for (row, samples) in rows.zip(samples) {
            row[..8].copy_from_slice(&samples);
        }
    }

    pub fn row_mut(&mut self, y: usize) -> &mut [u8] {
        &mut self.data[y * self.stride..][..self.stride]
    }

    #[inline(always)]
    fn row(&self, y: usize) -> &[u8] {
        &self.data[y * self.stride..][..self.width]
    }

    /// The row, or the nearest existing one.
    #[inline(always)]
    fn row_near(&self, y: Option<usize>) -> &[u8] {
        self.row(y.unwrap_or(0).min(self.height - 1))
    }
}

/// How a component is upsampled to the image's resolution.
#[derive(Clone, Copy)]
enum Way {
    AsTheyAre,
    MixColumns,
    MixRows,
    MixBoth,
    Repeat { h: usize, v: usize },
}

impl Way {
    fn of(frame: &Frame, component: &Component) -> Way {
        let (h, v) = (frame.h_max / component.h, frame.v_max / component.v);
        let lossy = frame.coding != Coding::Lossless;
        let mixes = lossy && component.width > 2;
        match (h, v) {
            (1, 1) => Way::AsTheyAre,
            (2, 1) if mixes => Way::MixColumns,
            (1, 2) if lossy => Way::MixRows,
            (2, 2) if mixes => Way::MixBoth,
            _ => Way::Repeat { h, v },
        }
    }
}

/// Ratios of sampling factors must be integers, as in libjpeg.
pub fn supported(frame: &Frame) -> Result<()> {
    let whole = |c: &Component| frame.h_max.is_multiple_of(c.h) && frame.v_max.is_multiple_of(c.v);
    match frame.components.iter().all(whole) {
        true => Ok(()),
        false => unsupported("fractional ratios of sampling factors"),
    }
}

/// The image, [H,W,3].
pub fn to_rgb(frame: &Frame, space: Space, planes: &[Plane]) -> Vec<u8> {
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || rows_to_rgb(frame, space, planes),
    )
}

#[inline(always)]
fn rows_to_rgb(frame: &Frame, space: Space, planes: &[Plane]) -> Vec<u8> {
    let mut rgb = vec![0; frame.width * frame.height * 3];
    let ways: Vec<Way> = frame.components.iter().map(|c| Way::of(frame, c)).collect();
    // Up to four output samples per input sample, and a row of sums.
    let mut buffers = vec![vec![0; frame.width + 16]; planes.len()];
    let mut sums = vec![0; frame.width + 16];
    for (y, rgb) in rgb.chunks_exact_mut(frame.width * 3).enumerate() {
        for ((plane, way), buffer) in planes.iter().zip(&ways).zip(&mut buffers) {
            fill_row(plane, *way, y, buffer, &mut sums);
        }
        let row = |c: usize| match ways[c] {
            Way::AsTheyAre => planes[c].row(y),
            _ => &buffers[c][..frame.width],
        };
        match space {
            Space::Gray => colour::gray(row(0), rgb),
            Space::Rgb => colour::rgb([row(0), row(1), row(2)], rgb),
            Space::YCbCr => colour::ycc([row(0), row(1), row(2)], rgb),
            Space::Cmyk => colour::cmyk([row(0), row(1), row(2), row(3)], rgb),
            Space::Ycck => colour::ycck([row(0), row(1), row(2), row(3)], rgb),
        }
    }
    rgb
}

/// Row `y` of the image from one component.
#[inline(always)]
fn fill_row(plane: &Plane, way: Way, y: usize, out: &mut [u8], sums: &mut [u16]) {
    // Of the two rows that one sample covers, the upper is nearer to the samples above.
    let beside = match y % 2 {
        0 => (y / 2).checked_sub(1),
        _ => Some(y / 2 + 1),
    };
    match way {
        Way::AsTheyAre => {}
        Way::MixColumns => mix_columns(plane.row(y), out),
        Way::MixRows => {
            let (near, far) = (plane.row(y / 2), plane.row_near(beside));
            let bias = 1 + (y % 2) as u16;
            for ((out, &near), &far) in out.iter_mut().zip(near).zip(far) {
                *out = ((3 * u16::from(near) + u16::from(far) + bias) >> 2) as u8;
            }
        }
        Way::MixBoth => {
            let (near, far) = (plane.row(y / 2), plane.row_near(beside));
            let sums = &mut sums[..near.len()];
            for ((sum, &near), &far) in sums.iter_mut().zip(near).zip(far) {
                *sum = 3 * u16::from(near) + u16::from(far);
            }
            mix_sums(sums, out);
        }
        Way::Repeat { h, v } => {
            for (out, &sample) in out.chunks_mut(h).zip(plane.row(y / v)) {
                out.fill(sample);
            }
        }
    }
}

/// Doubles the columns: 3 parts of the nearer sample and 1 of the other, alternately rounded up and
/// down.
#[inline(always)]
fn mix_columns(samples: &[u8], out: &mut [u8]) {
    let last = samples.len() - 1;
    let pairs = out.as_chunks_mut::<2>().0;
    let mix =
        |near: u8, far: u8, bias: u16| ((3 * u16::from(near) + u16::from(far) + bias) >> 2) as u8;
    for (pair, three) in pairs[1..].iter_mut().zip(samples.windows(3)) {
        *pair = [mix(three[1], three[0], 1), mix(three[1], three[2], 2)];
    }
    pairs[0] = [samples[0], mix(samples[0], samples[1], 2)];
    pairs[last] = [mix(samples[last], samples[last - 1], 1), samples[last]];
}

/// The same for sums of rows, which are four times as large.
#[inline(always)]
fn mix_sums(sums: &[u16], out: &mut [u8]) {
    let last = sums.len() - 1;
    let pairs = out.as_chunks_mut::<2>().0;
    let mix = |near: u16, far: u16, bias: u16| ((3 * near + far + bias) >> 4) as u8;
    for (pair, three) in pairs[1..].iter_mut().zip(sums.windows(3)) {
        *pair = [mix(three[1], three[0], 8), mix(three[1], three[2], 7)];
    }
    pairs[0] = [mix(sums[0], sums[0], 8), mix(sums[0], sums[1], 7)];
    pairs[last] = [
        mix(sums[last], sums[last - 1], 8),
        mix(sums[last], sums[last], 7),
    ];
}
