//! Maps of few positions on a GPU: one pass forward and one backward, whose blocks hold whole
//! groups of an image (`kernel_small.cu`).

use candle_core::{Result, Tensor};

use super::cuda::{Norm, Sizes};
use crate::ops::cuda::{Element, Gpu, Output, View, launch};

/// Threads per block, and channels per thread.
const THREADS: usize = 256;
const VECTOR: usize = 8;

/// Maximum number of channels per block.
const WIDEST: usize = 64;
/// Minimum number of channels per block: narrower blocks read memory lines in too many parts.
pub(super) const FORWARD: usize = 16;
pub(super) const BACKWARD: usize = 32;

/// How a map is divided: the channels per block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Small {
    slab: usize,
}

impl Small {
    /// The division of a map with elements of `bytes`, if a thread processes `vector` channels.
    /// None if a block cannot hold the rows of `least` channels, or would have registers for more
    /// than twice the rows, where tiles are faster.
    pub fn of(sizes: &Sizes, vector: usize, bytes: usize, least: usize) -> Option<Self> {
        if vector != VECTOR {
            return None;
        }
        let channels = sizes.channels;
        let width = channels / sizes.groups;
        let mut multiples = (1..=VECTOR).map(|n| n * width);
        let unit = multiples.find(|size| size.is_multiple_of(VECTOR))?;
        let rows = 16 / bytes; // what a thread has registers for
        let fits = |slab: &usize| sizes.positions <= THREADS / (slab / VECTOR) * rows;
        let slabs = (unit..=channels.min(WIDEST)).step_by(unit);
        let most = slabs.filter(fits).max()?;
        let even = channels.div_ceil(channels.div_ceil(most));
        let slab = even.next_multiple_of(unit);
        let fills = 2 * slab * sizes.positions >= THREADS * VECTOR * rows;
        (slab >= least && fills).then_some(Self { slab })
    }

    fn grid(&self, sizes: &Sizes) -> (u32, u32, u32) {
        let slabs = sizes.channels.div_ceil(self.slab);
        (slabs as u32, sizes.images as u32, 1)
    }

    /// y, and the moments [3,B,G].
    pub fn forward<T: Element>(
        &self,
        gpu: &Gpu,
        norm: &Norm,
        x: View<T>,
        eps: f64,
    ) -> Result<(Output<T>, Tensor)> {
        let Sizes {
            images,
            positions,
            channels,
            groups,
        } = norm.sizes;
        let mut y = Output::<T>::new(gpu.device(), x.len())?;
        let mut moments = Output::<f32>::new(gpu.device(), 3 * images * groups)?;
        let name = norm.name("small_forward", T::NAME);
        let (grid, threads) = (self.grid(&norm.sizes), THREADS as u32);
        // SAFETY: x and y have B·P·C elements, weight and bias C, and a block writes the moments of
        // its groups.
        unsafe {
            launch!(early gpu, "channel_norm_small", &name, grid, threads, 0;
                x, norm.weight, norm.bias, moments.view_mut(), y.view_mut(), positions as i32,
                channels as i32, groups as i32, self.slab as i32, norm.slope(), eps)?
        };
        Ok((y, moments.tensor((3, images, groups))))
    }

    /// dx, with `added` added; and Σ dz, Σ dz·x̂ and Σ dx of every image and channel, [B,3,C].
    pub fn backward<T: Element>(
        &self,
        gpu: &Gpu,
        norm: &Norm,
        moments: View<f32>,
        x: View<T>,
        dy: View<T>,
        added: Option<View<T>>,
    ) -> Result<(Output<T>, Output<f32>)> {
        let Sizes {
            images,
            positions,
            channels,
            groups,
        } = norm.sizes;
        let mut dx = Output::<T>::new(gpu.device(), x.len())?;
        let mut sums = Output::<f32>::new(gpu.device(), images * 3 * channels)?;
        let name = norm.name("small_backward", T::NAME);
        let (grid, threads) = (self.grid(&norm.sizes), THREADS as u32);
        // SAFETY: as in forward; a block writes the sums of its channels.
        unsafe {
            launch!(early gpu, "channel_norm_small", &name, grid, threads, 0;
                x, dy, moments, norm.weight, norm.bias, sums.view_mut(), added, dx.view_mut(), positions as i32,
                channels as i32, groups as i32, self.slab as i32, norm.slope())?
        };
        Ok((dx, sums))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(positions: usize, channels: usize, least: usize) -> Option<usize> {
        let sizes = Sizes {
            images: 2,
            positions,
            channels,
            groups: 32,
        };
        Small::of(&sizes, VECTOR, 2, least).map(|small| small.slab)
    }

    #[test]
    fn a_block_takes_as_many_whole_groups_as_it_can_hold() {
        assert_eq!(cut(256, 512, BACKWARD), Some(64));
        assert_eq!(cut(256, 192, BACKWARD), Some(48));
    }

    #[test]
    fn maps_of_more_positions_or_too_few_are_cut_into_tiles() {
        assert_eq!(cut(64, 384, FORWARD), None);
        assert_eq!(cut(1, 64, FORWARD), None);
        assert_eq!(cut(1024, 256, FORWARD), Some(16));
        assert_eq!(cut(1024, 256, BACKWARD), None);
        assert_eq!(cut(1024, 96, FORWARD), None); // groups of 3: 24 channels
        assert_eq!(cut(65_536, 128, FORWARD), None);
    }
}
