//! The colour space of a file's components, and the conversion to RGB.

use super::frame::{Coding, Frame};
use super::{Result, unsupported};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    Gray,
    Rgb,
    YCbCr,
    Cmyk,
    Ycck,
}

/// What the application segments say about colours.
#[derive(Debug, Default)]
pub struct Colours {
    jfif: bool,
    /// Adobe's transform: 0 none, 1 YCbCr, 2 YCCK.
    adobe: Option<u8>,
}

impl Colours {
    /// Reads segment APPn.
    pub fn read(&mut self, number: u8, segment: &[u8]) {
        match number {
            0 if segment.len() >= 14 && segment.starts_with(b"JFIF\0") => self.jfif = true,
            14 if segment.len() >= 12 && segment.starts_with(b"Adobe") => {
                self.adobe = Some(segment[11]);
            }
            _ => {}
        }
    }

    /// Decided by JFIF, then by Adobe's marker, then by the components' ids, as in libjpeg.
    pub fn space(&self, frame: &Frame) -> Result<Space> {
        let lossless = frame.coding == Coding::Lossless;
        let ids: Vec<u8> = frame.components.iter().map(|c| c.id).collect();
        let space = match (frame.components.len(), self.adobe) {
            (1, _) => Space::Gray,
            (3, _) if self.jfif => Space::YCbCr,
            (3, Some(0)) => Space::Rgb,
            (3, Some(_)) => Space::YCbCr,
            (3, None) if lossless || ids == b"RGB" => Space::Rgb,
            (3, None) => Space::YCbCr,
            (_, None | Some(0)) => Space::Cmyk,
            (_, Some(_)) => Space::Ycck,
        };
        match space {
            Space::YCbCr | Space::Ycck if lossless => unsupported("lossless coding of YCbCr"),
            space => Ok(space),
        }
    }
}

#[inline(always)]
pub fn gray(samples: &[u8], rgb: &mut [u8]) {
    for (rgb, &v) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(samples) {
        *rgb = [v; 3];
    }
}

#[inline(always)]
pub fn rgb([r, g, b]: [&[u8]; 3], rgb: &mut [u8]) {
    let samples = r.iter().zip(g).zip(b);
    for (rgb, ((&r, &g), &b)) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(samples) {
        *rgb = [r, g, b];
    }
}

/// JFIF's R = Y + 1.402 Cr, G = Y − 0.34414 Cb − 0.71414 Cr, B = Y + 1.772 Cb, in fixed point with
/// 16 fractional bits.
#[inline(always)]
fn ycc_pixel(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    const HALF: i32 = 1 << 15;
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    [
        y + ((91881 * cr + HALF) >> 16),
        y + ((-22554 * cb - 46802 * cr + HALF) >> 16),
        y + ((116130 * cb + HALF) >> 16),
    ]
    .map(|v| v.clamp(0, 255) as u8)
}

#[inline(always)]
pub fn ycc([y, cb, cr]: [&[u8]; 3], rgb: &mut [u8]) {
    let samples = y.iter().zip(cb).zip(cr);
    for (rgb, ((&y, &cb), &cr)) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(samples) {
        *rgb = ycc_pixel(y, cb, cr);
    }
}

/// Pillow treats all four components as inverted, with or without Adobe's marker. The result is
/// (255 − C)·(255 − K)/255 = K' − C·K'/255, with K' as stored.
#[inline(always)]
pub fn through_black(ink: u8, stored_black: u8) -> u8 {
    let product = u32::from(ink) * u32::from(stored_black) + 128;
    stored_black.saturating_sub((((product >> 8) + product) >> 8) as u8)
}

#[inline(always)]
pub fn cmyk([c, m, y, k]: [&[u8]; 4], rgb: &mut [u8]) {
    let samples = c.iter().zip(m).zip(y).zip(k);
    for (rgb, (((&c, &m), &y), &k)) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(samples) {
        *rgb = [c, m, y].map(|ink| through_black(255 - ink, k));
    }
}

#[inline(always)]
pub fn ycck([y, cb, cr, k]: [&[u8]; 4], rgb: &mut [u8]) {
    let samples = y.iter().zip(cb).zip(cr).zip(k);
    for (rgb, (((&y, &cb), &cr), &k)) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(samples) {
        *rgb = ycc_pixel(y, cb, cr).map(|ink| through_black(ink, k));
    }
}
