//! The GPU version: the kernels in `kernel.cu` for 2×2 windows of stride 2, or the general ones.

use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Layout, Result, Tensor, bail};
use half::{bf16, f16};

use super::{Kind, Pool, window};
use crate::ops::Padding;
use crate::ops::cuda::{Element, Gpu, Output, View, launch, lines};
use crate::ops::tape::{input_has_passed_slope, slope_of_input, take_reached};

/// B, H, W and C.
type Dims = (usize, usize, usize, usize);

impl Pool {
    /// Whether the kernels for 2×2 windows serve, which f16 does not have.
    fn in_pairs(&self, element: &str) -> bool {
        let window = &self.window;
        element != f16::NAME
            && self.kind == Kind::Max
            && (window.kernel, window.stride) == ((2, 2), 2)
            && window.padding == Padding::same(0)
    }

    fn kernel(&self, direction: &str, element: &str, vector: usize) -> String {
        let kind = match self.kind {
            Kind::Max if self.in_pairs(element) => "pairs",
            Kind::Max => "max",
            Kind::Average => "average",
        };
        format!("{kind}_{direction}_{element}_{vector}")
    }

    /// The kernels' arguments: kernel size, stride, leading padding, sizes of the map and of the
    /// result, channels.
    fn arguments(&self, channels: usize) -> [i32; 9] {
        let window = &self.window;
        let (input, output) = (window.input, window.output);
        [
            window.kernel.0,
            window.stride,
            window.padding.top,
            window.padding.left,
            input.0,
            input.1,
            output.0,
            output.1,
            channels,
        ]
        .map(|n| n as i32)
    }
}

pub(super) fn forward(pool: &Pool, x: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
    let gpu = &Gpu::of(x.device())?;
    match x.dtype() {
        DType::F32 => forward_of::<f32>(pool, x, layout),
        DType::BF16 => forward_of::<bf16>(pool, x, layout),
        DType::F16 if pool.kind == Kind::Average => {
            let x = (View::<f16>::stored(x, layout)?, layout.shape().dims4()?);
            Ok(averages(pool, gpu, x, f32::NEG_INFINITY)?.storage())
        }
        DType::F16 => forward_of::<f16>(pool, x, layout),
        other => bail!("pool: {other:?} has no kernel"),
    }
}

/// max(0, the mean of every window of stride 1) of f16 maps x [B,H,W,C]; no gradient.
pub fn relu_of_average(x: &Tensor, kernel: usize, padding: Padding) -> Result<Tensor> {
    let pool = Pool {
        window: window("relu_of_average", x, kernel, 1, padding)?,
        kind: Kind::Average,
    };
    let (dims, shape) = (x.dims4()?, pool.output(x.layout())?);
    let gpu = Gpu::of(x.device().as_cuda_device()?)?;
    let y = averages(&pool, &gpu, (View::<f16>::of(x)?, dims), 0.0)?;
    Ok(y.tensor(shape))
}

/// The means, at least `least`.
fn averages(
    pool: &Pool,
    gpu: &Gpu,
    (x, (b, _, _, c)): (View<f16>, Dims),
    least: f32,
) -> Result<Output<f16>> {
    let output = pool.window.output;
    let mut y = Output::<f16>::new(gpu.device(), b * output.0 * output.1 * c)?;
    let vector = x.vector(c);
    let name = pool.kernel("forward", f16::NAME, vector);
    let grid = lines(b, output.0, output.1, c / vector);
    let [k, s, top, left, h, w, oh, ow, c] = pool.arguments(c);
    // SAFETY: B·H·W·C elements of x, B·H'·W'·C of y.
    unsafe {
        launch!(gpu, "pool", &name, grid, 256, 0;
            x, y.view_mut(), least, k, s, top, left, h, w, oh, ow, c)?
    };
    Ok(y)
}

fn forward_of<T: Element>(pool: &Pool, x: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
    let gpu = Gpu::of(x.device())?;
    let (b, _, _, c) = layout.shape().dims4()?;
    let x = View::<T>::stored(x, layout)?;
    let output = pool.window.output;
    let mut y = Output::<T>::new(gpu.device(), b * output.0 * output.1 * c)?;
    let vector = x.vector(c);
    let name = pool.kernel("forward", T::NAME, vector);
    let grid = lines(b, output.0, output.1, c / vector);
    let [k, s, top, left, h, w, oh, ow, c] = pool.arguments(c);
    // SAFETY: B·H·W·C elements of x, B·H'·W'·C of y.
    unsafe {
        launch!(gpu, "pool", &name, grid, 256, 0; x, y.view_mut(), k, s, top, left, h, w, oh, ow, c)?
    };
    Ok(y.storage())
}

/// dx
pub(super) fn backward(pool: &Pool, x: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
    match x.dtype() {
        DType::F32 => backward_of::<f32>(pool, x, dy),
        DType::BF16 => backward_of::<bf16>(pool, x, dy),
        other => bail!("pool: {other:?} has no kernel"),
    }
}

fn backward_of<T: Element>(pool: &Pool, x: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
    let gpu = Gpu::of(x.device().as_cuda_device()?)?;
    let (shape, (b, h, w, c), dy) = (x.shape(), x.dims4()?, dy.contiguous()?);
    let (x, dy) = (View::<T>::of(x)?, View::<T>::of(&dy)?);
    let output = pool.window.output;
    assert_eq!(dy.len(), b * output.0 * output.1 * c);
    let mut dx = Output::<T>::new(gpu.device(), x.len())?;
    if !pool.in_pairs(T::NAME) {
        let vector = x.vector(c).min(dy.vector(c));
        let name = pool.kernel("backward", T::NAME, vector);
        let grid = lines(b, h, w, c / vector);
        let [k, s, top, left, h, w, oh, ow, c] = pool.arguments(c);
        // SAFETY: as asserted; every element of dx belongs to one thread.
        unsafe {
            launch!(gpu, "pool", &name, grid, 256, 0;
                x, dy, dx.view_mut(), k, s, top, left, h, w, oh, ow, c)?
        };
        return Ok(Some(dx.tensor(shape)));
    }
    // A gradient that has already reached x is added in the same pass, and the sum passes the ReLU
    // that made x.
    let reached = take_reached().map(|reached| reached.contiguous());
    let reached = reached.transpose()?;
    let added = reached.as_ref().map(View::<T>::of).transpose()?;
    assert!(added.is_none_or(|added| added.len() == x.len()));
    let slope = slope_of_input();
    if slope.is_some() {
        input_has_passed_slope();
    }
    let slope = slope.unwrap_or(1.0);
    let vectors = [Some(x), Some(dy), added].into_iter().flatten();
    let vector = vectors.map(|view| view.vector(c)).min().unwrap_or(1);
    let name = pool.kernel("backward", T::NAME, vector);
    let grid = lines(b, h.div_ceil(2), w.div_ceil(2), c / vector);
    let [k, s, top, left, h, w, oh, ow, c] = pool.arguments(c);
    // SAFETY: as asserted; every element of dx belongs to one thread.
    unsafe {
        launch!(gpu, "pool", &name, grid, 256, 0;
            x, dy, added, slope, dx.view_mut(), k, s, top, left, h, w, oh, ow, c)?
    };
    Ok(Some(dx.tensor(shape)))
}
