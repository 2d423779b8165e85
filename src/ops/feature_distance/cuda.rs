//! The GPU version: one pass over both maps forward, one backward.

use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Layout, Result, Tensor, bail};
use half::bf16;

use crate::ops::cuda::{Element, Gpu, Output, View, launch};
use crate::ops::sums;

type Input<'a> = (&'a CudaStorage, &'a Layout);

/// Maximum number of blocks. It depends on P alone, and so does the summation order.
const BLOCKS: usize = 2048;

/// The kernels' name for rows of `channels` channels, and the number of lanes per position.
fn team(channels: usize, vector: usize) -> (&'static str, usize) {
    match channels {
        _ if vector == 1 => ("any", 32),
        0..=64 => ("64", 8),
        65..=128 => ("128", 16),
        129..=256 => ("256", 32),
        257..=512 => ("512", 32),
        _ => ("any", 32),
    }
}

fn blocks(positions: usize, lanes: usize) -> u32 {
    positions.div_ceil(256 / lanes).clamp(1, BLOCKS) as u32
}

pub(super) fn forward(a: Input, b: Input, weight: Input) -> Result<CudaStorage> {
    match a.0.dtype() {
        DType::F32 => forward_of::<f32>(a, b, weight),
        DType::BF16 => forward_of::<bf16>(a, b, weight),
        other => bail!("feature_distance: {other:?} has no kernel"),
    }
}

fn forward_of<T: Element>(a: Input, b: Input, weight: Input) -> Result<CudaStorage> {
    let gpu = Gpu::of(a.0.device())?;
    let (a, b) = (View::<T>::stored(a.0, a.1)?, View::<T>::stored(b.0, b.1)?);
    let weight = View::<f32>::stored(weight.0, weight.1)?;
    let c = weight.len();
    assert!(a.len() == b.len() && a.len().is_multiple_of(c));
    let positions = a.len() / c;
    let (kind, lanes) = team(c, a.vector(c).min(b.vector(c)).min(weight.vector(c)));
    let blocks = blocks(positions, lanes);
    let mut partials = Output::<f32>::new(gpu.device(), blocks as usize)?;
    let name = format!("distance_forward_{}_{kind}", T::NAME);
    let (p, c) = (positions as i64, c as i32);
    // SAFETY: P·C elements of a and b, C of weight, one sum per block.
    unsafe {
        launch!(gpu, "feature_distance", &name, (blocks, 1, 1), 256, 0;
            a, b, weight, partials.view_mut(), p, c)?
    };
    let scale = 1.0 / positions as f64;
    Ok(sums::of_blocks(&gpu, &partials, scale)?.storage())
}

/// da and db, each if the graph tracks it.
pub(super) fn backward(
    a: &Tensor,
    b: &Tensor,
    weight: &Tensor,
    dy: &Tensor,
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    match a.dtype() {
        DType::F32 => backward_of::<f32>(a, b, weight, dy),
        DType::BF16 => backward_of::<bf16>(a, b, weight, dy),
        other => bail!("feature_distance: {other:?} has no kernel"),
    }
}

fn backward_of<T: Element>(
    a: &Tensor,
    b: &Tensor,
    weight: &Tensor,
    dy: &Tensor,
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let gpu = Gpu::of(a.device().as_cuda_device()?)?;
    let shape = a.shape();
    let wanted = |x: &Tensor| -> Result<Option<Output<T>>> {
        let output = || Output::new(gpu.device(), x.elem_count());
        x.track_op().then(output).transpose()
    };
    let (mut da, mut db) = (wanted(a)?, wanted(b)?);
    let (a, b) = (View::<T>::of(a)?, View::<T>::of(b)?);
    let (weight, dy) = (View::<f32>::of(weight)?, View::<f32>::of(dy)?);
    let c = weight.len();
    assert!(a.len() == b.len() && a.len().is_multiple_of(c) && dy.len() == 1);
    let positions = a.len() / c;
    let (kind, lanes) = team(c, a.vector(c).min(b.vector(c)).min(weight.vector(c)));
    let name = format!("distance_backward_{}_{kind}", T::NAME);
    let (grid, p, c) = ((blocks(positions, lanes), 1, 1), positions as i64, c as i32);
    let (to_a, to_b) = (
        da.as_mut().map(Output::view_mut),
        db.as_mut().map(Output::view_mut),
    );
    // SAFETY: as in forward; a gradient that is not requested has no address.
    unsafe {
        launch!(gpu, "feature_distance", &name, grid, 256, 0; a, b, weight, dy, to_a, to_b, p, c)?
    };
    Ok((da.map(|d| d.tensor(shape)), db.map(|d| d.tensor(shape))))
}
