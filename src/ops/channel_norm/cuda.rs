//! The GPU version: tiles of every image, merged in order, then a pass that writes the result
//! (`kernel.cu` says what each pass reads); for small maps, a single pass.
//!
//! The convolution that wrote the map may have left its [`Tiles`] ([`left`]), which saves a pass.

use candle_core::{DType, Result, Tensor, bail};
use half::bf16;

use super::left;
use super::small::{self, Small};
use crate::ops::column_sums::known;
use crate::ops::cuda::{Element, Gpu, Output, View, launch};
use crate::ops::tape::take_reached;
use crate::ops::{Activation, sums};

const THREADS: usize = 256;
/// Enough blocks to fill a large GPU several times, independent of the actual GPU, because the
/// summation order must not depend on it. Fewer if a block ends with a reduction over its lanes.
const BLOCKS: usize = 2048;
const BLOCKS_OF_SUMS: usize = 1024;
/// Maximum number of rows that one thread sums.
const ROWS: usize = 128;
/// Tiles' values of a group that a warp merges alone.
const FEW: usize = 512;
/// Tiles of an image whose sums a lane adds alone.
const FEW_TILES: usize = 8;
/// Rows that a thread loads at a time.
const DEEP: usize = 8;

/// A map [B, P, C] and its groups: those of an image for GroupNorm; BatchNorm has one image, whose
/// groups are channels.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct Sizes {
    pub images: usize,
    pub positions: usize,
    pub channels: usize,
    pub groups: usize,
}

impl Sizes {
    /// Positions per tile, determined by the sizes alone, for about `blocks` blocks if a thread
    /// processes `vector` channels.
    fn rows(&self, vector: usize, blocks: usize) -> usize {
        let lanes = THREADS / (self.channels / vector).min(THREADS);
        let even = (self.images * self.positions).div_ceil(blocks);
        let most = (lanes * ROWS).min(self.positions.next_multiple_of(lanes * DEEP));
        even.next_multiple_of(lanes * DEEP).min(most)
    }

    /// The grid of tiles, images, and slabs of the channels that one block's threads hold; and the
    /// rows per tile.
    fn grid(&self, vector: usize, blocks: usize) -> ((u32, u32, u32), usize) {
        let rows = self.rows(vector, blocks);
        let slabs = (self.channels / vector).div_ceil(THREADS);
        let tiles = self.positions.div_ceil(rows);
        ((tiles as u32, self.images as u32, slabs as u32), rows)
    }

    fn check(&self, elements: usize) -> Result<()> {
        let Self {
            images,
            positions,
            channels,
            ..
        } = *self;
        assert_eq!(images * positions * channels, elements);
        if elements == 0 || images > 65_535 || positions > i32::MAX as usize / 2 {
            bail!("norm: {self:?} is outside the range that the kernels support");
        }
        Ok(())
    }
}

/// Mean and Σ(x − mean)² of every channel of each tile: f32 [B, tiles, 2, C], tiles of `rows`
/// positions; the last tile may be smaller.
pub(in crate::ops) struct Tiles {
    pub values: Output<f32>,
    pub rows: usize,
}

impl Tiles {
    /// One pass over `x`.
    pub fn of<T: Element>(gpu: &Gpu, x: View<T>, sizes: Sizes) -> Result<Self> {
        sizes.check(x.len())?;
        let vector = x.vector(sizes.channels);
        let (grid, rows) = sizes.grid(vector, BLOCKS_OF_SUMS);
        let tiles = grid.0 as usize;
        let mut values = Output::new(gpu.device(), sizes.images * tiles * 2 * sizes.channels)?;
        let name = format!("tile_moments_{}_{vector}", T::NAME);
        let (positions, channels) = (sizes.positions as i32, sizes.channels as i32);
        // SAFETY: the map has B·P·C elements; a block writes its tile's 2·C values.
        unsafe {
            launch!(early gpu, "channel_norm", &name, grid, THREADS as u32, 0;
                x, values.view_mut(), positions, channels, rows as i32)?
        };
        Ok(Self { values, rows })
    }

    /// The moments of every image's groups, f32 [3,B,G]: mean, biased variance, 1/√(variance +
    /// eps).
    pub fn merge(&self, gpu: &Gpu, sizes: Sizes, eps: f64) -> Result<Tensor> {
        let tiles = sizes.positions.div_ceil(self.rows);
        assert_eq!(
            self.values.view().len(),
            sizes.images * tiles * 2 * sizes.channels
        );
        let mut moments = Output::<f32>::new(gpu.device(), 3 * sizes.images * sizes.groups)?;
        let (images, groups) = (sizes.images, sizes.groups);
        let [positions, channels, rows] =
            [sizes.positions, sizes.channels, self.rows].map(|n| n as i32);
        // SAFETY: tiles as asserted; three values a group and image.
        unsafe {
            if tiles * (sizes.channels / groups) <= FEW {
                let grid = ((images * groups).div_ceil(8) as u32, 1, 1);
                launch!(early gpu, "channel_norm", "merge_few_moments", grid, 256, 0;
                    self.values.view(), moments.view_mut(), images as i32, positions, channels,
                    groups as i32, rows, tiles as i32, eps)?
            } else {
                let grid = (groups as u32, images as u32, 1);
                launch!(early gpu, "channel_norm", "merge_moments", grid, 128, 0;
                    self.values.view(), moments.view_mut(), positions, channels, groups as i32, rows,
                    tiles as i32, eps)?
            }
        };
        Ok(moments.tensor((3, sizes.images, sizes.groups)))
    }
}

/// Which gradients a backward pass finds: those of weight and bias alone; dx too; dx and its sums.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::ops) enum Wanted {
    Parameters,
    Input,
    WithSums,
}

/// What a backward pass found.
pub(in crate::ops) struct Gradients<T> {
    dx: Option<Output<T>>,
    /// dbias and dweight, [2,C].
    parameters: Tensor,
    /// dx, with what was added, summed over images and positions: [C].
    sums: Option<Tensor>,
}

/// What normalizes a map besides its moments: weight and bias [C], and the activation.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Norm<'a> {
    pub sizes: Sizes,
    pub weight: View<'a, f32>,
    pub bias: View<'a, f32>,
    pub activation: Activation,
}

impl Norm<'_> {
    pub(super) fn name(&self, pass: &str, element: &str) -> String {
        let activation = match self.activation {
            Activation::None => "none",
            Activation::Silu => "silu",
            Activation::LeakyRelu(_) => "leaky",
        };
        format!("{pass}_{activation}_{element}")
    }

    /// Number of channels that a thread processes at a time.
    fn vector<T: Element>(&self, maps: &[View<T>]) -> usize {
        let channels = self.sizes.channels;
        let of_maps = maps.iter().map(|map| map.vector(channels));
        let of_weights = [self.weight, self.bias].map(|w| w.vector(channels));
        of_maps.chain(of_weights).min().unwrap_or(1)
    }

    fn small<T: Element>(&self, maps: &[View<T>], least: usize) -> Option<Small> {
        Small::of(&self.sizes, self.vector(maps), size_of::<T>(), least)
    }

    pub(super) fn slope(&self) -> f32 {
        match self.activation {
            Activation::LeakyRelu(slope) => slope as f32,
            _ => 0.0,
        }
    }

    fn view<'a>(&self, moments: &'a Tensor) -> Result<View<'a, f32>> {
        let Sizes { images, groups, .. } = self.sizes;
        let moments = View::of(moments)?;
        assert_eq!(moments.len(), 3 * images * groups);
        assert!(self.weight.len() == self.sizes.channels && self.bias.len() == self.sizes.channels);
        Ok(moments)
    }

    /// y for `x`, with its own moments [3,B,G], which are returned too; `tiles` are those of x, if
    /// they are known.
    pub fn normalized<T: Element>(
        &self,
        gpu: &Gpu,
        x: View<T>,
        tiles: Option<Tiles>,
        eps: f64,
    ) -> Result<(Output<T>, Tensor)> {
        self.sizes.check(x.len())?;
        if let Some(small) = self.small(&[x], small::FORWARD) {
            return small.forward(gpu, self, x, eps);
        }
        let tiles = match tiles {
            Some(tiles) => tiles,
            None => Tiles::of(gpu, x, self.sizes)?,
        };
        let moments = tiles.merge(gpu, self.sizes, eps)?;
        Ok((self.forward(gpu, x, &moments)?, moments))
    }

    /// y for `x` with given moments.
    pub fn forward<T: Element>(
        &self,
        gpu: &Gpu,
        x: View<T>,
        moments: &Tensor,
    ) -> Result<Output<T>> {
        self.sizes.check(x.len())?;
        let mut y = Output::<T>::new(gpu.device(), x.len())?;
        let Sizes {
            positions,
            channels,
            groups,
            ..
        } = self.sizes;
        let vector = self.vector(&[x]);
        let name = format!("{}_{vector}", self.name("normalize", T::NAME));
        let (grid, rows) = self.sizes.grid(vector, BLOCKS);
        // SAFETY: x and y have B·P·C elements; moments, weight and bias have the sizes that
        // `moments` asserts.
        unsafe {
            launch!(early gpu, "channel_norm", &name, grid, THREADS as u32, 0;
                x, self.view(moments)?, self.weight, self.bias, y.view_mut(), positions as i32, channels as i32,
                groups as i32, rows as i32, self.slope())?
        };
        Ok(y)
    }

    /// The gradients, from `x` and `dy`, and from what has already reached x.
    pub fn backward<T: Element>(
        &self,
        gpu: &Gpu,
        x: View<T>,
        dy: View<T>,
        moments: &Tensor,
        wanted: Wanted,
        added: Option<View<T>>,
    ) -> Result<Gradients<T>> {
        self.sizes.check(x.len())?;
        assert_eq!(x.len(), dy.len());
        assert!(added.is_none_or(|added| added.len() == x.len()));
        let Sizes {
            images,
            positions,
            channels,
            groups,
        } = self.sizes;
        let mut maps = vec![x, dy];
        maps.extend(added);
        let (vector, moments) = (self.vector(&maps), self.view(moments)?);
        if wanted != Wanted::Parameters
            && let Some(small) = self.small(&maps, small::BACKWARD)
        {
            let (dx, of_images) = small.backward(gpu, self, moments, x, dy, added)?;
            let sums = sums::of_rows(gpu, &of_images, 3 * channels)?.tensor((3, channels));
            return Ok(Gradients {
                dx: Some(dx),
                parameters: sums.narrow(0, 0, 2)?,
                sums: Some(sums.get(2)?),
            });
        }
        let (grid, rows) = self.sizes.grid(vector, BLOCKS_OF_SUMS);
        let count = grid.0;
        let mut tiles = Output::<f32>::new(gpu.device(), images * count as usize * 2 * channels)?;
        let name = format!("{}_{vector}", self.name("tile_sums", T::NAME));
        // SAFETY: as in forward; a block writes its tile's 2·C values.
        unsafe {
            launch!(early gpu, "channel_norm", &name, grid, THREADS as u32, 0;
                x, dy, moments, self.weight, self.bias, tiles.view_mut(), positions as i32, channels as i32,
                groups as i32, rows as i32, self.slope())?
        };
        let mut of_images = Output::<f32>::new(gpu.device(), images * 2 * channels)?;
        let mut means = Output::<f32>::new(gpu.device(), 2 * images * groups)?;
        // SAFETY: a block or warp writes the 2·C/G sums and the two means of its group.
        unsafe {
            if count as usize <= FEW_TILES && channels / groups <= 32 {
                let grid = ((images * groups).div_ceil(8) as u32, 1, 1);
                launch!(early gpu, "channel_norm", "merge_few_sums", grid, 256, 0;
                    tiles.view(), self.weight, of_images.view_mut(), means.view_mut(), images as i32,
                    positions as i32, channels as i32, groups as i32, count as i32)?
            } else {
                let grid = (groups as u32, images as u32, 1);
                launch!(early gpu, "channel_norm", "merge_sums", grid, 128, 0;
                    tiles.view(), self.weight, of_images.view_mut(), means.view_mut(), positions as i32,
                    channels as i32, groups as i32, count as i32)?
            }
        };
        if wanted == Wanted::Parameters {
            let parameters = sums::of_rows(gpu, &of_images, 2 * channels)?;
            return Ok(Gradients {
                dx: None,
                parameters: parameters.tensor((2, channels)),
                sums: None,
            });
        }
        let mut dx = Output::<T>::new(gpu.device(), x.len())?;
        let (grid, rows) = match wanted {
            Wanted::WithSums => (grid, rows),
            _ => self.sizes.grid(vector, BLOCKS),
        };
        let tiles_of_dx = images * grid.0 as usize;
        let mut of_dx = match wanted {
            Wanted::WithSums => Some(Output::<f32>::new(gpu.device(), tiles_of_dx * channels)?),
            _ => None,
        };
        let name = format!("{}_{vector}", self.name("gradient", T::NAME));
        // SAFETY: as in forward; a block writes the C sums of its tile, if there are any.
        unsafe {
            launch!(early gpu, "channel_norm", &name, grid, THREADS as u32, 0;
                x, dy, moments, self.weight, self.bias, means.view(), added, dx.view_mut(),
                of_dx.as_mut().map(Output::view_mut), positions as i32, channels as i32, groups as i32,
                rows as i32, self.slope())?
        };
        let (parameters, sums) = match &of_dx {
            Some(of_dx) => {
                let of_images = (&of_images, 2 * channels);
                let (parameters, sums) = sums::of_rows_of_two(gpu, of_images, (of_dx, channels))?;
                (parameters, Some(sums.tensor(channels)))
            }
            None => (sums::of_rows(gpu, &of_images, 2 * channels)?, None),
        };
        Ok(Gradients {
            dx: Some(dx),
            parameters: parameters.tensor((2, channels)),
            sums,
        })
    }
}

/// The moments of a tensor of any dtype that has kernels.
pub(in crate::ops) fn moments(gpu: &Gpu, x: &Tensor, sizes: Sizes, eps: f64) -> Result<Tensor> {
    let tiles = match (left::take(x), x.dtype()) {
        (Some(tiles), _) => tiles,
        (None, DType::F32) => Tiles::of(gpu, View::<f32>::of(x)?, sizes)?,
        (None, DType::BF16) => Tiles::of(gpu, View::<bf16>::of(x)?, sizes)?,
        (None, other) => bail!("norm: {other:?} has no kernel"),
    };
    tiles.merge(gpu, sizes, eps)
}

/// Gradients of x, weight and bias, each if the graph tracks it. With `sums`, those of dx are
/// remembered for the operation that made x, if that has a bias.
pub(in crate::ops) fn gradients(
    gpu: &Gpu,
    norm: &Norm,
    moments: &Tensor,
    [x, weight, bias]: [&Tensor; 3],
    dy: &Tensor,
    sums: bool,
) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
    fn of<T: Element>(
        gpu: &Gpu,
        norm: &Norm,
        moments: &Tensor,
        x: &Tensor,
        dy: &Tensor,
        wanted: Wanted,
    ) -> Result<(Option<Tensor>, Tensor)> {
        let (x_view, dy) = (View::<T>::of(x)?, View::<T>::of(dy)?);
        // A gradient that has already reached x is added in the same pass.
        let reached = x.track_op().then(take_reached).flatten();
        let reached = reached.map(|reached| reached.contiguous()).transpose()?;
        let added = reached.as_ref().map(View::<T>::of).transpose()?;
        let found = norm.backward(gpu, x_view, dy, moments, wanted, added)?;
        let dx = found.dx.map(|dx| dx.tensor(x.shape()));
        if let (Some(dx), Some(sums)) = (&dx, &found.sums) {
            known::remember(dx, sums);
        }
        Ok((dx, found.parameters))
    }
    let wanted = match x.track_op() {
        true if sums && known::is_remembering() => Wanted::WithSums,
        true => Wanted::Input,
        false => Wanted::Parameters,
    };
    let dy = dy.contiguous()?;
    let (dx, parameters) = match x.dtype() {
        DType::F32 => of::<f32>(gpu, norm, moments, x, &dy, wanted)?,
        DType::BF16 => of::<bf16>(gpu, norm, moments, x, &dy, wanted)?,
        other => bail!("norm: {other:?} has no kernel"),
    };
    let part = |of: &Tensor, i: usize| match of.track_op() {
        true => Ok::<_, candle_core::Error>(Some(parameters.get(i)?)),
        false => Ok(None),
    };
    Ok((dx, part(weight, 1)?, part(bias, 0)?))
}
