//! The GPU version, for f16: pieces of 16 bytes.

use candle_core::{DType, Result, Tensor, bail};
use half::f16;

use crate::ops::cuda::{Gpu, Output, View};

/// Most maps of a launch (`PARTS` in kernel.cu).
const PARTS: usize = 6;
/// Elements of a piece.
const PIECE: usize = 8;
/// Pieces of a block.
const BLOCK: usize = 4 * 256;

/// Where the maps lie (`Parts` in kernel.cu).
#[derive(Clone, Copy)]
#[repr(C)]
struct Parts {
    from: [u64; PARTS],
    begins: [i32; PARTS + 2],
}

/// Whether the kernel takes them.
pub(super) fn serves(maps: &[Tensor]) -> Result<bool> {
    let mut rows = None;
    for map in maps {
        let (b, h, w, c) = map.dims4()?;
        let same = *rows.get_or_insert((b, h, w)) == (b, h, w);
        let on_gpu = map.device().is_cuda() && map.dtype() == DType::F16 && !map.track_op();
        if !same || !on_gpu || !map.is_contiguous() || View::<f16>::of(map)?.vector(c) != PIECE {
            return Ok(false);
        }
    }
    let all: usize = maps.iter().map(Tensor::elem_count).sum();
    Ok(maps.len() <= PARTS && all / PIECE + BLOCK <= i32::MAX as usize)
}

pub(super) fn concatenate(maps: &[Tensor]) -> Result<Tensor> {
    let [first, ..] = maps else {
        bail!("concatenate: no maps");
    };
    let gpu = Gpu::of(first.device().as_cuda_device()?)?;
    let (b, h, w, _) = first.dims4()?;
    let mut parts = Parts {
        from: [0; PARTS],
        begins: [i32::MAX; PARTS + 2],
    };
    let mut channels = 0;
    for (i, map) in maps.iter().enumerate() {
        parts.from[i] = View::<f16>::of(map)?.address();
        parts.begins[i] = (channels / PIECE) as i32;
        channels += map.dim(3)?;
    }
    let pieces = channels / PIECE;
    parts.begins[maps.len()] = pieces as i32;
    let all = b * h * w * pieces;
    let mut y = Output::<f16>::new(gpu.device(), all * PIECE)?;
    let kernel = gpu.kernel("concatenate", "concatenate", 0)?;
    let mut launch = gpu.launch(&kernel);
    launch.structure(&parts);
    launch.value(y.view_mut());
    launch.value(pieces as i32);
    launch.value(all as i32);
    // SAFETY: B·H·W rows of each part's channels, which `serves` compared, and of all of them in y.
    unsafe { launch.run((all.div_ceil(BLOCK) as u32, 1, 1), 256, 0)? };
    Ok(y.tensor((b, h, w, channels)))
}
