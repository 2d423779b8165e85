//! A convolution on any GPU, of any size: windows gathered into rows, a chunk of them at a time,
//! times packed weights.
//!
//! The steps are the CPU's (cpu.rs); sizes that matrix products do not take are filled up to
//! multiples of 8 with zeros.

use candle_core::Result;

use super::op::{Conv2d, Reach};
use crate::ops::cuda::{Element, Gpu, Output, View, ViewMut, grid_of, launch};
use crate::ops::product::views::Multiply;

/// Bytes of gathered rows at a time.
const CHUNK: usize = 256 << 20;
/// What sizes of matrix products are multiples of.
const ALIGNED: usize = 8;

/// Windows over `maps` maps [height,width,channels], `output` of them a map, the first at `origin`.
#[derive(Debug, Clone, Copy)]
struct Windows {
    maps: usize,
    size: (usize, usize),
    channels: usize,
    kernel: (usize, usize),
    stride: usize,
    origin: (isize, isize),
    output: (usize, usize),
}

impl Windows {
    /// Of a convolution's input.
    fn of_input(op: &Conv2d, maps: usize) -> Self {
        let w = &op.window;
        Self {
            maps,
            size: w.input,
            channels: op.channels.0,
            kernel: w.kernel,
            stride: w.stride,
            origin: (-(w.padding.top as isize), -(w.padding.left as isize)),
            output: w.output,
        }
    }

    /// Of the gradient at its output, for the inputs that these reaches are of.
    fn of_gradient(op: &Conv2d, maps: usize, [down, across]: &[Reach; 2]) -> Self {
        Self {
            maps,
            size: op.window.output,
            channels: op.channels.1,
            kernel: (down.count, across.count),
            stride: 1,
            origin: (down.origin, across.origin),
            output: (down.positions, across.positions),
        }
    }

    fn count(&self) -> usize {
        self.maps * self.output.0 * self.output.1
    }

    /// Terms of a gathered row.
    fn depth(&self) -> usize {
        (self.kernel.0 * self.kernel.1 * self.channels).next_multiple_of(ALIGNED)
    }

    /// Whether the gathered rows are those of the maps.
    fn are_rows(&self) -> bool {
        self.kernel == (1, 1)
            && self.stride == 1
            && self.origin == (0, 0)
            && self.output == self.size
            && self.channels.is_multiple_of(ALIGNED)
    }

    /// (first, count) of chunks of windows.
    fn chunks<T>(&self) -> impl Iterator<Item = (usize, usize)> + use<T> {
        let (total, most) = (self.count(), CHUNK / (self.depth() * size_of::<T>()));
        let most = most.max(1);
        (0..total.div_ceil(most)).map(move |i| (i * most, most.min(total - i * most)))
    }

    /// Rows [count,depth] from window `first` on.
    fn gather<T: Element>(
        &self,
        gpu: &Gpu,
        maps: View<T>,
        (first, count): (usize, usize),
    ) -> Result<Output<T>> {
        let depth = self.depth();
        let mut rows = Output::<T>::new(gpu.device(), count * depth)?;
        let wide = self.channels.is_multiple_of(8);
        let name = format!("gather{}_{}", if wide { "8" } else { "" }, T::NAME);
        let grid = grid_of(count * depth / if wide { 8 } else { 1 }, 256);
        let int = |x: usize| x as i32;
        // SAFETY: the maps are B·H·W·C elements, the rows count·depth.
        unsafe {
            launch!(gpu, "conv2d_gather", &name, grid, 256, 0;
                maps, rows.view_mut(), first as i64, count as i64, int(depth),
                int(self.size.0), int(self.size.1), int(self.channels),
                int(self.kernel.0), int(self.kernel.1), int(self.stride),
                self.origin.0 as i32, self.origin.1 as i32, int(self.output.0), int(self.output.1))?;
        }
        Ok(rows)
    }
}

/// The windows of `maps` maps as rows: a window's terms, filled up to a multiple of 8 with zeros.
pub(super) fn gathered<T: Element>(
    gpu: &Gpu,
    op: &Conv2d,
    maps: usize,
    x: View<T>,
) -> Result<Output<T>> {
    let windows = Windows::of_input(op, maps);
    assert_eq!(
        x.len(),
        maps * op.window.input.0 * op.window.input.1 * op.channels.0
    );
    windows.gather(gpu, x, (0, windows.count()))
}

/// The taps of packed weights along one axis: from `from` on, by `step`, `count` of them.
#[derive(Clone, Copy)]
struct Taps {
    from: i32,
    step: i32,
    count: i32,
}

impl Taps {
    fn all(kernel: usize) -> Self {
        Self {
            from: 0,
            step: 1,
            count: kernel as i32,
        }
    }

    fn of(reach: &Reach) -> Self {
        Self {
            from: reach.highest as i32,
            step: -(reach.step as i32),
            count: reach.count as i32,
        }
    }
}

/// Weights f32 [O,I,kh,kw] as [rows,depth], the outputs' rows or, `by_input`, the inputs'.
fn pack<T: Element>(
    gpu: &Gpu,
    op: &Conv2d,
    weight: View<f32>,
    [down, across]: [Taps; 2],
    (rows, depth): (usize, usize),
    by_input: bool,
) -> Result<Output<T>> {
    let mut packed = Output::<T>::new(gpu.device(), rows * depth)?;
    let ((i, o), (kh, kw)) = (op.channels, op.window.kernel);
    assert_eq!(weight.len(), i * o * kh * kw);
    let int = |x: usize| x as i32;
    // SAFETY: the weight is O·I·kh·kw elements, the packed ones rows·depth.
    unsafe {
        launch!(gpu, "conv2d_gather", &format!("pack_{}", T::NAME), grid_of(rows * depth, 256), 256, 0;
            weight, packed.view_mut(), int(o), int(i), int(kh), int(kw), down.from, down.step, down.count,
            across.from, across.step, across.count, int(rows), int(depth), i32::from(by_input))?;
    }
    Ok(packed)
}

/// Where results go: `channels` of every row, to every `stride`-th position from `phase` on of maps
/// of `size`, plus a bias.
#[derive(Clone, Copy)]
struct Place<'a> {
    channels: usize,
    size: (usize, usize),
    stride: usize,
    phase: (usize, usize),
    bias: Option<View<'a, f32>>,
}

/// Every window's row times the packed weights [rows,depth], to its place in `to`.
fn times<T: Multiply>(
    gpu: &Gpu,
    windows: &Windows,
    maps: View<T>,
    (packed, width): (View<T>, usize),
    place: Place,
    to: &mut ViewMut<T>,
) -> Result<()> {
    let depth = windows.depth();
    let direct = place.stride == 1 && place.bias.is_none() && place.channels == width;
    assert_eq!(
        maps.len(),
        windows.maps * windows.size.0 * windows.size.1 * windows.channels
    );
    assert_eq!(
        to.len(),
        windows.maps * place.size.0 * place.size.1 * place.channels
    );
    for (first, count) in windows.chunks::<T>() {
        let gathered;
        let rows = if windows.are_rows() {
            maps.part(first * depth, count * depth)
        } else {
            gathered = windows.gather(gpu, maps, (first, count))?;
            gathered.view()
        };
        let sizes = [count, depth, width];
        if direct {
            let part = to.part(first * width, count * width);
            T::by_rows(gpu, sizes, rows, packed, part)?;
            continue;
        }
        let mut results = Output::<T>::new(gpu.device(), count * width)?;
        T::by_rows(gpu, sizes, rows, packed, results.view_mut())?;
        let int = |x: usize| x as i32;
        let grid = grid_of(count * place.channels, 256);
        // SAFETY: count·width results; positions of the maps that the window's output and the
        // stride reach.
        unsafe {
            launch!(gpu, "conv2d_gather", &format!("place_{}", T::NAME), grid, 256, 0;
                results.view(), to.again(), place.bias, first as i64, count as i64, int(width),
                int(place.channels), int(place.size.0), int(place.size.1), int(windows.output.0),
                int(windows.output.1), int(place.stride), int(place.phase.0), int(place.phase.1))?;
        }
    }
    Ok(())
}

/// y [B,H',W',O].
pub(super) fn forward<T: Multiply>(
    gpu: &Gpu,
    op: &Conv2d,
    maps: usize,
    x: View<T>,
    weight: View<f32>,
    bias: Option<View<f32>>,
) -> Result<Output<T>> {
    let (windows, o) = (Windows::of_input(op, maps), op.channels.1);
    let width = o.next_multiple_of(ALIGNED);
    let taps = [op.window.kernel.0, op.window.kernel.1].map(Taps::all);
    let packed = pack::<T>(gpu, op, weight, taps, (width, windows.depth()), false)?;
    let mut y = Output::<T>::new(gpu.device(), windows.count() * o)?;
    let place = Place {
        channels: o,
        size: op.window.output,
        stride: 1,
        phase: (0, 0),
        bias,
    };
    times(
        gpu,
        &windows,
        x,
        (packed.view(), width),
        place,
        &mut y.view_mut(),
    )?;
    Ok(y)
}

/// dL/dx [B,H,W,I].
pub(super) fn input_gradient<T: Multiply>(
    gpu: &Gpu,
    op: &Conv2d,
    maps: usize,
    weight: View<f32>,
    grad: View<T>,
) -> Result<Output<T>> {
    let (i, size) = (op.channels.0, op.window.input);
    let width = i.next_multiple_of(ALIGNED);
    let mut dx = Output::<T>::new(gpu.device(), maps * size.0 * size.1 * i)?;
    let reached = |reach: &[Reach; 2]| reach.iter().all(|reach| reach.count > 0);
    if !op.phases().all(|phase| reached(&op.reach(phase))) {
        dx.zero()?;
    }
    for phase in op.phases() {
        let reach = op.reach(phase);
        if !reached(&reach) {
            continue;
        }
        let windows = Windows::of_gradient(op, maps, &reach);
        let taps = [Taps::of(&reach[0]), Taps::of(&reach[1])];
        let packed = pack::<T>(gpu, op, weight, taps, (width, windows.depth()), true)?;
        let place = Place {
            channels: i,
            size,
            stride: op.window.stride,
            phase,
            bias: None,
        };
        times(
            gpu,
            &windows,
            grad,
            (packed.view(), width),
            place,
            &mut dx.view_mut(),
        )?;
    }
    Ok(dx)
}

/// Rows [count,from] filled up to `to` columns.
fn widened<T: Element>(
    gpu: &Gpu,
    rows: View<T>,
    count: usize,
    (from, to): (usize, usize),
) -> Result<Output<T>> {
    let mut wide = Output::<T>::new(gpu.device(), count * to)?;
    assert_eq!(rows.len(), count * from);
    // SAFETY: count·from and count·to elements.
    unsafe {
        launch!(gpu, "conv2d_gather", &format!("widen_{}", T::NAME), grid_of(count * to, 256), 256, 0;
            rows, wide.view_mut(), count as i64, from as i32, to as i32)?;
    }
    Ok(wide)
}

/// dL/dw f32 [O,I,kh,kw].
pub(super) fn weight_gradient<T: Multiply>(
    gpu: &Gpu,
    op: &Conv2d,
    maps: usize,
    x: View<T>,
    grad: View<T>,
) -> Result<Output<f32>> {
    let (windows, (i, o)) = (Windows::of_input(op, maps), op.channels);
    let (width, depth, taps) = (o.next_multiple_of(ALIGNED), windows.depth(), op.taps());
    let mut packed = Output::<f32>::new(gpu.device(), width * depth)?;
    for (first, count) in windows.chunks::<T>() {
        let (gathered, wide);
        let rows = if windows.are_rows() {
            x.part(first * depth, count * depth)
        } else {
            gathered = windows.gather(gpu, x, (first, count))?;
            gathered.view()
        };
        let mut grads = grad.part(first * o, count * o);
        if width != o {
            wide = widened(gpu, grads, count, (o, width))?;
            grads = wide.view();
        }
        let sizes = [count, width, depth];
        T::outer(gpu, sizes, grads, rows, packed.view_mut(), first > 0)?;
    }
    let mut weight = Output::<f32>::new(gpu.device(), o * i * taps)?;
    // SAFETY: width·depth and O·I·taps elements.
    unsafe {
        launch!(gpu, "conv2d_gather", "unpack_gradient", grid_of(o * i * taps, 256), 256, 0;
            packed.view(), weight.view_mut(), o as i32, i as i32, taps as i32, depth as i32)?;
    }
    Ok(weight)
}
