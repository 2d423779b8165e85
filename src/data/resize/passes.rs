//! The two passes over u8 pixels, written for vector instructions.
//!
//! Sums of products in i32 are exact, so their order does not matter, nor does the instruction set.
//! With AVX2 they multiply pairs of i16 ([`avx2`]).

#[cfg(target_arch = "x86_64")]
mod avx2;

#[cfg(target_arch = "x86_64")]
use pulp::x86::V3;

use super::taps::{FixedTaps, PRECISION};

/// What a rounded sum begins with: a half.
const HALF: i32 = 1 << (PRECISION - 1);

/// Pixels of a part of an image: its lines begin `pitch` bytes after one another.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub bytes: &'a [u8],
    pub pitch: usize,
    /// Column and line of the image that its first pixel is.
    pub at: (usize, usize),
    /// Columns and lines.
    pub size: (usize, usize),
}

impl<'a> Part<'a> {
    /// Its pixels one after the other.
    pub fn to_vec(self) -> Vec<u8> {
        self.lines().collect::<Vec<_>>().concat()
    }

    fn lines(self) -> impl Iterator<Item = &'a [u8]> {
        let width = 3 * self.size.0;
        let lines = self.bytes.chunks(self.pitch).take(self.size.1);
        lines.map(move |line| &line[..width])
    }
}

fn to_u8(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Each line of `part` resampled, one pixel for each of `taps`.
pub(super) fn horizontal(part: Part, taps: &FixedTaps) -> Vec<u8> {
    let mut out = vec![0u8; part.size.1 * taps.len() * 3];
    if out.is_empty() {
        return out;
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = V3::try_new() {
        avx2::horizontal(simd, part, taps, &mut out);
        return out;
    }
    horizontal_anywhere(part, taps, &mut out);
    out
}

/// [`horizontal`] on any processor.
pub(super) fn horizontal_anywhere(part: Part, taps: &FixedTaps, out: &mut [u8]) {
    for (line, out) in part.lines().zip(out.chunks_exact_mut(taps.len() * 3)) {
        for (pixel, (first, weights)) in out.chunks_exact_mut(3).zip(taps.iter()) {
            let mut sum = [HALF; 3];
            let pixels = line[(first - part.at.0) * 3..].chunks_exact(3);
            for (p, w) in pixels.zip(weights) {
                for c in 0..3 {
                    sum[c] += i32::from(p[c]) * w;
                }
            }
            pixel.copy_from_slice(&sum.map(to_u8));
        }
    }
}

/// The columns of `part` resampled, one line for each of `taps`.
pub(super) fn vertical(part: Part, taps: &FixedTaps) -> Vec<u8> {
    let mut out = vec![0u8; taps.len() * 3 * part.size.0];
    if out.is_empty() {
        return out;
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = V3::try_new()
        && 3 * part.size.0 >= avx2::COLUMNS
    {
        avx2::vertical(simd, part, taps, &mut out);
        return out;
    }
    vertical_anywhere(part, taps, &mut out);
    out
}

/// [`vertical`] on any processor.
pub(super) fn vertical_anywhere(part: Part, taps: &FixedTaps, out: &mut [u8]) {
    let width = 3 * part.size.0;
    let mut sums = vec![0i32; width];
    for (line, (first, weights)) in out.chunks_exact_mut(width).zip(taps.iter()) {
        sums.fill(HALF);
        let lines = part.bytes[(first - part.at.1) * part.pitch..].chunks(part.pitch);
        for (line, w) in lines.zip(weights) {
            for (sum, p) in sums.iter_mut().zip(line) {
                *sum += i32::from(*p) * w;
            }
        }
        for (p, sum) in line.iter_mut().zip(&sums) {
            *p = to_u8(*sum);
        }
    }
}
