//! A frozen convolution and its ReLU in f16 on Hopper, with sums in f32: eight times as fine as
//! bf16, for features that are compared with other programs'.
//!
//! Maps whose channels Hopper's kernels do not take (an image's three) are gathered into rows
//! first.

use std::sync::OnceLock;

use candle_core::{DType, Result, Tensor, bail};
use half::f16;

use super::general;
use super::hopper::{self, Finish};
use super::op::Conv2d;
use crate::ops::Padding;
use crate::ops::cuda::{Gpu, Output, View, ViewMut};
use crate::ops::window::Window;

/// Bytes of gathered rows at a time.
const GATHERED: usize = 512 << 20;

/// The weight in f16, in the kernels' order, once it was used.
#[derive(Default)]
pub(super) struct Packed(OnceLock<Tensor>);

/// How a convolution reaches the kernels.
enum Way {
    /// Weight [O,kh,kw,I].
    Windows,
    /// Rows of so many terms, weight [O,1,1,terms].
    Rows(usize),
}

impl Way {
    fn of(op: &Conv2d) -> Self {
        let (inputs, terms) = (op.channels.0, op.taps() * op.channels.0);
        match inputs >= hopper::NARROWEST && inputs.is_multiple_of(8) {
            true => Way::Windows,
            false => Way::Rows(terms.next_multiple_of(8)),
        }
    }
}

impl Packed {
    fn get(&self, op: &Conv2d, weight: &Tensor) -> Result<&Tensor> {
        if let Some(packed) = self.0.get() {
            return Ok(packed);
        }
        let (o, terms) = (op.channels.1, op.taps() * op.channels.0);
        let rows = weight
            .permute((0, 2, 3, 1))?
            .contiguous()?
            .reshape((o, terms))?;
        let rows = match Way::of(op) {
            Way::Windows => rows,
            Way::Rows(depth) => rows.pad_with_zeros(1, 0, depth - terms)?,
        };
        let packed = rows.to_dtype(DType::F16)?.contiguous()?;
        Ok(self.0.get_or_init(|| packed))
    }

    /// conv(x) + bias of x f16 [B,H,W,I], through a leaky ReLU of this slope if one is given, in
    /// f16.
    ///
    /// Errors: another card than a Hopper one; sizes that its kernels do not take.
    pub fn forward(
        &self,
        op: &Conv2d,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        slope: Option<f32>,
    ) -> Result<Tensor> {
        let gpu = Gpu::of(x.device().as_cuda_device()?)?;
        let (maps, ..) = x.dims4()?;
        let ((height, width), o) = (op.window.output, op.channels.1);
        op.count(maps);
        let packed = View::<f16>::of(self.get(op, weight)?)?;
        let finish = Finish {
            bias: Some(View::<f32>::of(bias)?),
            slope,
            ..Finish::default()
        };
        let (x, image) = (View::<f16>::of(x)?, height * width);
        let mut y = Output::<f16>::new(gpu.device(), maps * image * o)?;
        match Way::of(op) {
            Way::Windows => multiply(&gpu, op, maps, x, packed, finish, y.view_mut())?,
            Way::Rows(depth) => {
                let kernel = (1, 1);
                let pointwise = Conv2d {
                    window: Window::new("conv2d", (height, width), kernel, 1, Padding::same(0))?,
                    channels: (depth, o),
                    packed: None,
                };
                let most = (GATHERED / (image * depth * size_of::<f16>())).max(1);
                let each = x.len() / maps;
                let mut all = y.view_mut();
                for first in (0..maps).step_by(most) {
                    let count = most.min(maps - first);
                    let part = x.part(first * each, count * each);
                    let rows = general::gathered(&gpu, op, count, part)?;
                    let to = all.part(first * image * o, count * image * o);
                    multiply(&gpu, &pointwise, count, rows.view(), packed, finish, to)?;
                }
            }
        }
        Ok(y.tensor((maps, height, width, o)))
    }
}

/// The convolution by the packed weight.
fn multiply(
    gpu: &Gpu,
    op: &Conv2d,
    maps: usize,
    x: View<f16>,
    packed: View<f16>,
    finish: Finish<f16>,
    y: ViewMut<f16>,
) -> Result<()> {
    match hopper::forward(gpu, op, maps, x, packed, finish, y)? {
        true => Ok(()),
        false => bail!("conv2d in f16: no kernel of this GPU takes {op:?}"),
    }
}
