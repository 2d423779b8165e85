//! A convolution as a candle operation: its geometry, and which implementation runs on which
//! device.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

#[cfg(feature = "cuda")]
use super::{cuda, fused};
#[cfg(feature = "cuda")]
use crate::ops::tape;
use crate::ops::window::Window;
use crate::ops::{Packed, Padding, flop, slices};

/// A convolution: (x, weight) or (x, weight, bias) to y.
#[derive(Debug, Clone)]
pub(super) struct Conv2d {
    pub window: Window,
    /// I and O.
    pub channels: (usize, usize),
    /// Copies of the weight: on a CPU if it does not change, on a GPU always.
    pub packed: Option<Packed>,
}

/// Along one axis, the kernel offsets by which outputs reach the inputs phase + s·u, u below
/// `positions`, in the order of the outputs: the first output for input u is `origin` + u.
pub(super) struct Reach {
    /// The kernel offset of the first output, and the decrement for each following one.
    pub highest: usize,
    pub step: usize,
    pub count: usize,
    pub origin: isize,
    pub positions: usize,
}

impl Reach {
    /// Output m reads input phase + s·u at kernel offset phase + s·u + padding − s·m: offset first
    /// + s·q for m = u + base − q.
    fn new(phase: usize, padding: usize, kernel: usize, input: usize, stride: usize) -> Self {
        let (first, base) = ((phase + padding) % stride, (phase + padding) / stride);
        let count = kernel.saturating_sub(first).div_ceil(stride);
        Self {
            highest: first + stride * count.saturating_sub(1),
            step: stride,
            count,
            origin: base as isize + 1 - count as isize,
            positions: (input - phase).div_ceil(stride),
        }
    }

    pub fn taps(&self) -> Vec<usize> {
        (0..self.count)
            .map(|i| self.highest - i * self.step)
            .collect()
    }
}

impl Conv2d {
    pub fn taps(&self) -> usize {
        self.window.kernel.0 * self.window.kernel.1
    }

    /// Whether the windows are the rows of the map itself.
    pub fn is_pointwise(&self) -> bool {
        self.taps() == 1 && self.window.stride == 1 && self.window.padding == Padding::same(0)
    }

    /// How outputs reach the inputs (phase.0 + s·u, phase.1 + s·v): down and across.
    pub fn reach(&self, phase: (usize, usize)) -> [Reach; 2] {
        let w = &self.window;
        [
            Reach::new(phase.0, w.padding.top, w.kernel.0, w.input.0, w.stride),
            Reach::new(phase.1, w.padding.left, w.kernel.1, w.input.1, w.stride),
        ]
    }

    /// The phases of input positions, each with its own kernel offsets.
    pub fn phases(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (stride, (height, width)) = (self.window.stride, self.window.input);
        (0..stride.min(height)).flat_map(move |y| (0..stride.min(width)).map(move |x| (y, x)))
    }

    /// Counts a matmul over all windows of `maps` maps.
    pub fn count(&self, maps: usize) {
        let windows = maps * self.window.output.0 * self.window.output.1;
        let (i, o) = self.channels;
        flop::count(windows, i * self.taps(), o);
    }

    /// Like [`Conv2d::count`], for a 3×3 convolution after upsampling, folded into four 2×2
    /// convolutions.
    #[cfg(feature = "cuda")]
    pub fn count_folded(&self, maps: usize) {
        let windows = maps * self.window.output.0 * self.window.output.1;
        flop::count(windows, 4 * self.channels.0, self.channels.1);
    }

    /// Gradients of x, the weight and the bias, each if the graph tracks it.
    pub fn gradients(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let maps = x.dim(0)?;
        [x, weight]
            .iter()
            .filter(|t| t.track_op())
            .for_each(|_| self.count(maps));
        #[cfg(feature = "cuda")]
        if grad.device().is_cuda() {
            return cuda::backward(self, x, weight, bias, &grad.contiguous()?);
        }
        self.backward(x, weight, bias, grad)
    }
}

impl CustomOp2 for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = slices::of(x, x_layout)?;
        Ok(self.forward(x, slices::of(weight, weight_layout)?, None))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.count(x_layout.dims()[0]);
        cuda::forward(self, (x, x_layout), (weight, weight_layout), None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dx, dw, _] = self.gradients(x, weight, None, grad)?;
        Ok((dx, dw))
    }
}

impl CustomOp3 for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = slices::of(x, x_layout)?;
        let bias = slices::of(bias, bias_layout)?;
        Ok(self.forward(x, slices::of(weight, weight_layout)?, Some(bias)))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
        bias: &CudaStorage,
        bias_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let bias = Some((bias, bias_layout));
        self.count(x_layout.dims()[0]);
        cuda::forward(self, (x, x_layout), (weight, weight_layout), bias)
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dx, dw, db] = self.gradients(x, weight, Some(bias), grad)?;
        Ok((dx, dw, db))
    }
}

/// A convolution with an operation that a GPU fuses into it: (x, weight, bias) to y.
#[cfg(feature = "cuda")]
pub(super) struct Fused {
    /// For `upsampled` x, the convolution of the doubled map.
    pub op: Conv2d,
    pub with: With,
}

/// The operation fused into a convolution.
#[cfg(feature = "cuda")]
pub(super) enum With {
    /// Adds a map of y's shape. The tape records it as an input too; candle's own graph does not
    /// know it.
    Residual(Tensor),
    /// Multiplies y by this where it is negative: 0 for a ReLU, the slope of a leaky one.
    Slope(f32),
    /// First doubles x by repetition.
    Upsampling,
}

#[cfg(feature = "cuda")]
impl Fused {
    /// y, recorded on the tape, which all training on a GPU uses.
    pub fn apply(self, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let Self { op, with } = self;
        let [x, weight, bias] = [x, weight, bias].map(tape::contiguous);
        let (x, weight, bias) = (x?, weight?, bias?);
        match with {
            With::Residual(residual) => {
                let residual = tape::contiguous(&residual)?;
                let with = With::Residual(residual.detach());
                let fused = Self {
                    op: op.clone(),
                    with,
                };
                let y = x.apply_op3(&weight, &bias, fused)?;
                tape::note(
                    &[&x, &weight, &bias, &residual],
                    &y,
                    move |inputs, _, dy| {
                        let [x, weight, bias, _] = inputs else {
                            candle_core::bail!("a convolution with a residual has four inputs");
                        };
                        let [dx, dw, db] = op.gradients(x, weight, Some(bias), dy)?;
                        Ok(vec![dx, dw, db, Some(dy.clone())])
                    },
                );
                Ok(y)
            }
            With::Slope(slope) => {
                let y = tape::apply3(&x, &weight, &bias, Self { op, with })?;
                tape::note_slope(&y, slope);
                Ok(y)
            }
            With::Upsampling => tape::apply3(&x, &weight, &bias, Self { op, with }),
        }
    }
}

#[cfg(feature = "cuda")]
impl CustomOp3 for Fused {
    fn name(&self) -> &'static str {
        "fused-conv2d"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("convolutions are fused on a GPU alone")
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
        bias: &CudaStorage,
        bias_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        fused::forward(
            self,
            (x, x_layout),
            (weight, weight_layout),
            (bias, bias_layout),
        )
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dx, dw, db] = fused::backward(self, x, weight, bias, y, &grad.contiguous()?)?;
        Ok((dx, dw, db))
    }
}
