//! A nearest ×2 upsampling and the 3×3 convolution behind it as one, on Hopper: over the small map,
//! by weights that were summed where they meet the same position of it. 4/9 of the FLOP, and the
//! large map in between is neither written nor read.

use candle_core::Result;
use half::bf16;

use super::hopper::{Finish, Windows, Work};
use crate::ops::cuda::{Gpu, View, ViewMut};

/// Taps of a 3×3 convolution after an upsampling, folded: 4×4, of which a position of the small map
/// meets 2×2.
pub(super) const FOLDED: usize = 16;

pub(super) fn of_upsampled(
    (maps, height, width): (usize, usize, usize),
    (i, o): (usize, usize),
) -> Work {
    let phases = [(0, 0), (0, 1), (1, 0), (1, 1)];
    let windows = |to: (usize, usize)| Windows {
        output: (height, width),
        low: [to.0 as isize - 1, to.1 as isize - 1],
        stride: 1,
        taps: [2, 2],
        tap: (3 - to.0) * 4 + 3 - to.1,
        tap_steps: [-8, -2],
        to,
    };
    Work {
        maps,
        input: (height, width),
        channels: i,
        windows: phases.map(windows).into(),
        taps: FOLDED,
        transposed: false,
        size: (2 * height, 2 * width),
        columns: o,
    }
}

/// A nearest ×2 upsampling of x [B,H,W,I], `size` its (B,H,W), and a 3×3 convolution with padding
/// 1, by the folded weight [O,4,4,I]: y [B,2H,2W,O]. Four convolutions of 2×2 taps over the small
/// map, one for each parity of y's rows and columns: 4/9 of the FLOP.
pub(super) fn upsampled(
    gpu: &Gpu,
    size: (usize, usize, usize),
    channels: (usize, usize),
    x: View<bf16>,
    folded: View<bf16>,
    finish: Finish,
    y: ViewMut<bf16>,
) -> Result<bool> {
    of_upsampled(size, channels).run(gpu, x, folded, finish, y)
}

/// The gradient of [`upsampled`] for x, from `grad` [B,2H,2W,O]: a 4×4 convolution of stride 2,
/// plus `added` of the shape of x.
pub(super) fn upsampled_gradient(
    gpu: &Gpu,
    (maps, height, width): (usize, usize, usize),
    (i, o): (usize, usize),
    grad: View<bf16>,
    folded: View<bf16>,
    dx: ViewMut<bf16>,
) -> Result<bool> {
    let work = Work {
        maps,
        input: (2 * height, 2 * width),
        channels: o,
        windows: vec![Windows {
            output: (height, width),
            low: [-1, -1],
            stride: 2,
            taps: [4, 4],
            tap: 0,
            tap_steps: [4, 1],
            to: (0, 0),
        }],
        taps: FOLDED,
        transposed: true,
        size: (height, width),
        columns: i,
    };
    work.run(gpu, grad, folded, Finish::default(), dx)
}
