//! Maps of few positions on a GPU: one pass each way, whose blocks hold whole groups of an image (`kernel_small.cu`).

use candle_core::{Result, Tensor};

use super::cuda::{Norm, Sizes};
use crate::ops::cuda::{Element, Gpu, Output, View, launch};

/// Channels of a thread.
const VECTOR: usize = 8;

/// How a map is cut: threads of a block, and the channels that it takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Small {
    threads: usize,
    slab: usize,
}

impl Small {
    /// The cut of a map of elements of `bytes`, of which a thread takes `vector` channels; none where a block cannot hold
    /// a group's rows.
    pub fn of(sizes: &Sizes, vector: usize, bytes: usize) -> Option<Self> {
        if vector != VECTOR {
            return None;
        }
        let width = sizes.channels / sizes.groups;
        let unit = (1..=VECTOR)
            .map(|n| n * width)
            .find(|size| size.is_multiple_of(VECTOR))?;
        let rows = 16 / bytes; // 16 bytes a row and vector, in 8 · 4 registers
        let fits = |threads: usize, slab: usize| {
            let lanes = threads / (slab / VECTOR);
            slab <= threads && sizes.positions <= lanes * rows
        };
        let slabs = |threads| {
            (1..=8)
                .rev()
                .map(|n| n * unit)
                .filter(|&slab| slab <= sizes.channels && (slab <= 64 || slab == unit))
                .find(|&slab| fits(threads, slab))
                .map(|slab| Self { threads, slab })
        };
        slabs(256).or_else(|| slabs(512))
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
        let name = norm.name("small_forward", T::NAME, self.threads);
        let (grid, threads) = (self.grid(&norm.sizes), self.threads as u32);
        // SAFETY: x and y have B·P·C elements, weight and bias C, and a block writes the moments of its groups.
        unsafe {
            launch!(gpu, "channel_norm_small", &name, grid, threads, 0;
                x, norm.weight, norm.bias, moments.view_mut(), y.view_mut(), positions as i32,
                channels as i32, groups as i32, self.slab as i32, norm.slope(), eps)?
        };
        Ok((y, moments.tensor((3, images, groups))))
    }

    /// dx with what is `added`, and Σ dz and Σ dz·x̂ of every image and channel, [B,2,C].
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
        let mut sums = Output::<f32>::new(gpu.device(), images * 2 * channels)?;
        let name = norm.name("small_backward", T::NAME, self.threads);
        let (grid, threads) = (self.grid(&norm.sizes), self.threads as u32);
        // SAFETY: as forward; a block writes the sums of its channels.
        unsafe {
            launch!(gpu, "channel_norm_small", &name, grid, threads, 0;
                x, dy, moments, norm.weight, norm.bias, sums.view_mut(), added, dx.view_mut(), positions as i32,
                channels as i32, groups as i32, self.slab as i32, norm.slope())?
        };
        Ok((dx, sums))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_holds_all_rows_of_the_groups_it_takes() {
        for (positions, channels, groups) in [
            (256, 512, 32),
            (1024, 256, 32),
            (64, 384, 32),
            (1024, 96, 32),
        ] {
            let sizes = Sizes {
                images: 2,
                positions,
                channels,
                groups,
            };
            let small = Small::of(&sizes, 8, 2).expect("few positions");
            let width = channels / groups;
            assert!(small.slab.is_multiple_of(width) && small.slab.is_multiple_of(8));
            assert!(small.threads / (small.slab / 8) * 8 >= positions);
        }
    }

    #[test]
    fn large_maps_are_cut_into_tiles() {
        let sizes = Sizes {
            images: 2,
            positions: 65_536,
            channels: 128,
            groups: 32,
        };
        assert_eq!(Small::of(&sizes, 8, 2), None);
    }
}
