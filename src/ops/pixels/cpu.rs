//! The CPU's side: lines of an image at a time, on all threads.

use super::Bytes;
use crate::ops::{blocks, simd};

pub(super) fn values(bytes: Bytes) -> Vec<f32> {
    let (height, line) = (bytes.height, 3 * bytes.width);
    let count = bytes.images.len() * height * line;
    blocks::filled(count, line, &|first, block| {
        for (at, out) in (first..).zip(block.chunks_exact_mut(line)) {
            let (image, row) = (at / height, at % height);
            let from = &bytes.images[image][row * line..][..line];
            match bytes.mirrored[image] {
                false => convert(from, out),
                true => {
                    let pixels = from.as_chunks::<3>().0.iter().rev();
                    for (out, pixel) in out.as_chunks_mut::<3>().0.iter_mut().zip(pixels) {
                        *out = pixel.map(value);
                    }
                }
            }
        }
    })
}

#[inline(always)]
fn value(byte: u8) -> f32 {
    f32::from(byte) / 127.5 - 1.0
}

fn convert(bytes: &[u8], out: &mut [f32]) {
    simd::vectorized(
        #[inline(always)]
        || {
            for (out, byte) in out.iter_mut().zip(bytes) {
                *out = value(*byte);
            }
        },
    );
}
