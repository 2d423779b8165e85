//! The GPU version: teams of lanes process rows; a second pass sums the parameters' gradients.

use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Layout, Result, Tensor, bail};
use half::bf16;

use crate::ops::cuda::{Element, Gpu, Output, View, launch};
use crate::ops::sums;

type Input<'a> = (&'a CudaStorage, &'a Layout);
type Gradients = (Option<Tensor>, Option<Tensor>, Option<Tensor>);

/// Rows per partial sum of dweight and dbias.
const TILE: usize = 512;

/// Number of lanes per row of `channels` channels, and the grid for all rows.
fn team(rows: usize, channels: usize) -> (usize, (u32, u32, u32)) {
    let lanes = if channels <= 32 { 8 } else { 32 };
    (lanes, (rows.div_ceil(256 / lanes) as u32, 1, 1))
}

pub(super) fn forward(x: Input, weight: Input, bias: Input, eps: f64) -> Result<CudaStorage> {
    match x.0.dtype() {
        DType::F32 => forward_of::<f32>(x, weight, bias, eps),
        DType::BF16 => forward_of::<bf16>(x, weight, bias, eps),
        other => bail!("layer_norm: {other:?} has no kernel"),
    }
}

fn forward_of<T: Element>(x: Input, weight: Input, bias: Input, eps: f64) -> Result<CudaStorage> {
    let gpu = Gpu::of(x.0.device())?;
    let x = View::<T>::stored(x.0, x.1)?;
    let weight = View::<f32>::stored(weight.0, weight.1)?;
    let bias = View::<f32>::stored(bias.0, bias.1)?;
    let c = weight.len();
    assert!(x.len().is_multiple_of(c) && bias.len() == c);
    let rows = x.len() / c;
    let (lanes, grid) = team(rows, c);
    let mut y = Output::<T>::new(gpu.device(), x.len())?;
    let name = format!("rows_forward_{}_{lanes}", T::NAME);
    // SAFETY: R·C elements of x and y, C of weight and bias.
    unsafe {
        launch!(gpu, "layer_norm", &name, grid, 256, 0;
            x, weight, bias, y.view_mut(), rows as i64, c as i32, eps as f32)?
    };
    Ok(y.storage())
}

pub(super) fn backward(inputs: [&Tensor; 3], dy: &Tensor, eps: f64) -> Result<Gradients> {
    match inputs[0].dtype() {
        DType::F32 => backward_of::<f32>(inputs, dy, eps),
        DType::BF16 => backward_of::<bf16>(inputs, dy, eps),
        other => bail!("layer_norm: {other:?} has no kernel"),
    }
}

fn backward_of<T: Element>(
    [x, weight, bias]: [&Tensor; 3],
    dy: &Tensor,
    eps: f64,
) -> Result<Gradients> {
    let gpu = Gpu::of(x.device().as_cuda_device()?)?;
    let dy = dy.contiguous()?;
    let (x_view, dy) = (View::<T>::of(x)?, View::<T>::of(&dy)?);
    let weight_view = View::<f32>::of(weight)?;
    let c = weight_view.len();
    assert!(x_view.len().is_multiple_of(c) && dy.len() == x_view.len());
    let rows = x_view.len() / c;
    let (lanes, grid) = team(rows, c);
    let mut dx = Output::<T>::new(gpu.device(), x_view.len())?;
    let mut kept = Output::<f32>::new(gpu.device(), 2 * rows)?;
    let name = format!("rows_backward_{}_{lanes}", T::NAME);
    // SAFETY: R·C elements of x, dy and dx, C of weight, two values kept per row.
    unsafe {
        launch!(gpu, "layer_norm", &name, grid, 256, 0;
            x_view, dy, weight_view, dx.view_mut(), kept.view_mut(), rows as i64, c as i32, eps as f32)?
    };
    let dx = x.track_op().then(|| dx.tensor(x.shape()));
    if !weight.track_op() && !bias.track_op() {
        return Ok((dx, None, None));
    }
    let tiles = rows.div_ceil(TILE);
    let mut of_tiles = Output::<f32>::new(gpu.device(), tiles * 2 * c)?;
    let name = format!("tile_sums_{}", T::NAME);
    let grid = (tiles as u32, 1, c.div_ceil(256) as u32);
    // SAFETY: as above; a block writes its tile's 2·C sums.
    unsafe {
        launch!(gpu, "layer_norm", &name, grid, 256, 0;
            x_view, dy, kept.view(), of_tiles.view_mut(), rows as i64, c as i32, TILE as i32)?
    };
    let sums = sums::of_rows(&gpu, &of_tiles, 2 * c)?.tensor((2, c));
    let part = |of: &Tensor, i: usize| of.track_op().then(|| sums.get(i)).transpose();
    Ok((dx, part(weight, 1)?, part(bias, 0)?))
}
