//! Sliding windows over a map [B,H,W,C]: the geometry that convolution and pooling share.

use candle_core::{Result, Tensor, bail};

/// Rows and columns added around a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Padding {
    pub top: usize,
    pub bottom: usize,
    pub left: usize,
    pub right: usize,
}

impl Padding {
    pub const fn new(top: usize, bottom: usize, left: usize, right: usize) -> Self {
        Self {
            top,
            bottom,
            left,
            right,
        }
    }

    /// The same on all four sides.
    pub const fn same(n: usize) -> Self {
        Self::new(n, n, n, n)
    }
}

/// Windows of `kernel` = (kh, kw), moved by `stride` over a padded map of `input` = (H, W):
/// `output` = (H', W') of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub kernel: (usize, usize),
    pub stride: usize,
    pub padding: Padding,
    pub input: (usize, usize),
    pub output: (usize, usize),
}

impl Window {
    pub fn new(
        op: &str,
        input: (usize, usize),
        kernel: (usize, usize),
        stride: usize,
        padding: Padding,
    ) -> Result<Self> {
        if stride == 0 || kernel.0 == 0 || kernel.1 == 0 {
            bail!("{op}: kernel {kernel:?} and stride {stride} must be at least 1");
        }
        let height = input.0 + padding.top + padding.bottom;
        let width = input.1 + padding.left + padding.right;
        if height < kernel.0 || width < kernel.1 {
            bail!(
                "{op}: the kernel {kernel:?} is larger than the padded map ({height}, {width}) of a map {input:?}"
            );
        }
        let output = (
            (height - kernel.0) / stride + 1,
            (width - kernel.1) / stride + 1,
        );
        Ok(Self {
            kernel,
            stride,
            padding,
            input,
            output,
        })
    }

    /// The reference's view of the windows: for each of the kh·kw taps, the value under it at every
    /// window, [B,H',W',C] each, with `outside` in the padding. Only padding, reshaping and
    /// narrowing: any type, any device.
    pub fn taps(&self, x: &Tensor, outside: f64) -> Result<Vec<Tensor>> {
        let (kh, kw) = self.kernel;
        let (oh, ow) = self.output;
        let s = self.stride;
        // Enough rows that each tap can take oh (ow) groups of s rows (columns) from its offset.
        let x = surround(x, 1, self.padding.top, kh - 1 + oh * s, outside)?;
        let x = surround(&x, 2, self.padding.left, kw - 1 + ow * s, outside)?;
        let (b, _, _, c) = x.dims4()?;
        let mut taps = Vec::with_capacity(kh * kw);
        for ky in 0..kh {
            let rows = x.narrow(1, ky, oh * s)?.contiguous()?;
            let rows = rows.reshape((b, oh, s, (), c))?.narrow(2, 0, 1)?;
            let rows = rows.contiguous()?.reshape((b, oh, (), c))?; // [B,H',W+..,C]
            for kx in 0..kw {
                let tap = rows.narrow(2, kx, ow * s)?.contiguous()?;
                let tap = tap.reshape((b, oh, ow, s, c))?.narrow(3, 0, 1)?;
                taps.push(tap.contiguous()?.reshape((b, oh, ow, c))?);
            }
        }
        Ok(taps)
    }
}

/// `x` with `before` constant slices in front along `dim`, then cut or filled up to `length`
/// slices.
fn surround(x: &Tensor, dim: usize, before: usize, length: usize, value: f64) -> Result<Tensor> {
    let constant = |n: usize| -> Result<Tensor> {
        let mut dims = x.dims().to_vec();
        dims[dim] = n;
        Tensor::ones(dims, x.dtype(), x.device())?.affine(0.0, value)
    };
    let kept = x.dim(dim)?.min(length - before);
    let mut parts = Vec::new();
    if before > 0 {
        parts.push(constant(before)?);
    }
    parts.push(x.narrow(dim, 0, kept)?);
    if before + kept < length {
        parts.push(constant(length - before - kept)?);
    }
    Tensor::cat(&parts, dim)
}
