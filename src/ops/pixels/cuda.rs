//! The GPU's side: one copy out of page-locked memory, images first, then a byte for each that says
//! whether it is mirrored; one pass over them.

use candle_core::{CudaDevice, Result, Tensor};
use rayon::prelude::*;

use super::Bytes;
use crate::ops::cuda::{Gpu, Output, Upload, launch};

pub(super) fn tensor(device: &CudaDevice, upload: &mut Upload<u8>, bytes: Bytes) -> Result<Tensor> {
    let gpu = Gpu::of(device)?;
    let (b, h, w, _) = bytes.shape();
    let (image, count) = (h * w * 3, b * h * w * 3);
    let copied = upload.copy(device, count + b, |there| {
        let (images, mirrored) = there.split_at_mut(count);
        let images = images.par_chunks_exact_mut(image).zip(bytes.images);
        images.for_each(|(to, from)| to.copy_from_slice(from));
        for (to, from) in mirrored.iter_mut().zip(bytes.mirrored) {
            *to = u8::from(*from);
        }
    })?;
    let mut out = Output::<f32>::new(device, count)?;
    let (pixels, mirrored) = (copied.view().part(0, count), copied.view().part(count, b));
    // A thread takes four pixels where those are whole words.
    let each = if w.is_multiple_of(4) { 4 } else { 1 };
    let grid = ((h * w / each).div_ceil(256) as u32, b as u32, 1);
    // SAFETY: B·H·W·3 bytes and as many floats, B marks; memory is aligned to 256 bytes, and so an
    // image of a multiple of four pixels to 4 bytes, and its floats to 16.
    unsafe {
        launch!(gpu, "pixels", &format!("pixels_{each}"), grid, 256, 0; pixels, mirrored, out.view_mut(), h as i32, w as i32)?;
    }
    Ok(out.tensor(bytes.shape()))
}
