//! Images of bytes resampled on a GPU, along both sides: y = scale·Σ w·x + shift.
//!
//! x u8 [B,h,w,3] → y [B,H,W,3] in f32 or f16; every line and every column of y has its own taps.
//! No gradient. The CPU's resampling is that of `metrics::resize`.

pub mod check;

use candle_core::{DType, Device, Result, Tensor, bail};
use half::f16;

use super::cuda::{Element, Gpu, Output, View, launch};

const THREADS: u32 = 128;

/// Along one side: each output's first input, and its weights for the inputs from that on.
pub struct Taps {
    pub first: Vec<u32>,
    /// As many for each output.
    pub weights: Vec<f32>,
}

/// Resamples `images` u8 [B,h,w,3] on a GPU by taps down and across, in `dtype`.
///
/// Errors: no images of bytes; a dtype without a kernel.
pub fn resample(
    images: &Tensor,
    taps: [&Taps; 2],
    (scale, shift): (f32, f32),
    dtype: DType,
) -> Result<Tensor> {
    match dtype {
        DType::F32 => resample_to::<f32>(images, taps, scale, shift),
        DType::F16 => resample_to::<f16>(images, taps, scale, shift),
        other => bail!("resample: {other:?} has no kernel"),
    }
}

fn resample_to<T: Element>(
    images: &Tensor,
    [down, across]: [&Taps; 2],
    scale: f32,
    shift: f32,
) -> Result<Tensor> {
    let (b, h, w, c) = images.dims4()?;
    if c != 3 {
        bail!("resample: images have 3 channels, found {c}");
    }
    let device = images.device();
    let gpu = Gpu::of(device.as_cuda_device()?)?;
    let (lines, columns) = (down.first.len(), across.first.len());
    let tables = [Table::new(down, device)?, Table::new(across, device)?];
    let x = View::<u8>::of(images)?;
    let mut y = Output::<T>::new(gpu.device(), b * lines * columns * 3)?;
    let grid = ((columns as u32).div_ceil(THREADS), lines as u32, b as u32);
    let (name, int) = (format!("resample_{}", T::NAME), |n: usize| n as i32);
    let [(first_lines, line_weights), (first_columns, column_weights)] =
        [tables[0].views()?, tables[1].views()?];
    let [line_taps, column_taps] = [down, across].map(|t| int(t.weights.len() / t.first.len()));
    // SAFETY: B·h·w·3 bytes, B·lines·columns·3 results; tables for every line and column.
    unsafe {
        launch!(gpu, "resample", &name, grid, THREADS, 0;
            x, y.view_mut(), first_lines, line_weights, line_taps, first_columns, column_weights,
            column_taps, int(h), int(w), int(columns), scale, shift)?;
    }
    Ok(y.tensor((b, lines, columns, 3)))
}

/// Taps on the GPU.
struct Table {
    first: Tensor,
    weights: Tensor,
}

impl Table {
    fn new(taps: &Taps, device: &Device) -> Result<Self> {
        if taps.first.is_empty() || !taps.weights.len().is_multiple_of(taps.first.len()) {
            bail!(
                "resample: {} weights for {} outputs",
                taps.weights.len(),
                taps.first.len()
            );
        }
        Ok(Self {
            first: Tensor::new(taps.first.as_slice(), device)?,
            weights: Tensor::new(taps.weights.as_slice(), device)?,
        })
    }

    fn views(&self) -> Result<(View<'_, u32>, View<'_, f32>)> {
        Ok((View::of(&self.first)?, View::of(&self.weights)?))
    }
}
