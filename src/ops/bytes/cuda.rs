//! The GPU's side: one pass, and one buffer to download.

use candle_core::{DType, Result, Tensor, bail};
use half::bf16;

use crate::ops::cuda::{Buffer, Element, Gpu, View, launch};

const THREADS: usize = 256;

/// 8-bit images on the GPU, made again and again of maps of one shape.
pub struct Bytes {
    /// [B,h,w,3·p²]
    shape: [usize; 4],
    patch: usize,
    /// Blocks an image.
    blocks: usize,
    /// The images, and behind them a byte for each block.
    buffer: Buffer<u8>,
}

impl Bytes {
    /// For maps of `shape` [B,h,w,3·`patch`²].
    ///
    /// Errors: another number of channels.
    pub fn new(gpu: &Gpu, shape: [usize; 4], patch: usize) -> Result<Self> {
        let [b, h, w, c] = shape;
        if c != 3 * patch * patch {
            bail!("bytes: maps of {c} channels are no images in patches of {patch}");
        }
        let values = h * w * c;
        let blocks = values.div_ceil(THREADS * Self::vector_of(shape, patch));
        Ok(Self {
            shape,
            patch,
            blocks,
            buffer: Buffer::zeros(gpu, b * (values + blocks))?,
        })
    }

    /// Values a thread.
    fn vector_of([_, h, w, c]: [usize; 4], patch: usize) -> usize {
        match patch == 1 && (h * w * c).is_multiple_of(8) {
            true => 8,
            false => 1,
        }
    }

    fn values(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// Rounds `maps`, f32 or bf16, in the stream's order.
    ///
    /// Errors: another shape or dtype.
    pub fn write(&self, gpu: &Gpu, maps: &Tensor) -> Result<()> {
        if maps.dims() != self.shape {
            bail!(
                "bytes: expected maps {:?}, found {:?}",
                self.shape,
                maps.dims()
            );
        }
        match maps.dtype() {
            DType::F32 => self.write_of(gpu, View::<f32>::of(maps)?),
            DType::BF16 => self.write_of(gpu, View::<bf16>::of(maps)?),
            other => bail!("bytes: {other:?} has no kernel"),
        }
    }

    fn write_of<T: Element>(&self, gpu: &Gpu, maps: View<T>) -> Result<()> {
        let vector = Self::vector_of(self.shape, self.patch);
        if !maps.address().is_multiple_of(16) && vector > 1 {
            bail!("bytes: the maps do not begin at a multiple of 16 bytes");
        }
        let [b, _, w, c] = self.shape;
        let grid = (self.blocks as u32, b as u32, 1);
        let name = format!("bytes_{}_{vector}", T::NAME);
        let [w, c, p, values] = [w, c, self.patch, self.values()].map(|n| n as i32);
        // SAFETY: B·values elements, as many bytes and one for each block.
        unsafe {
            launch!(gpu, "bytes", &name, grid, THREADS as u32, 0; maps, self.buffer.view_mut(), w, c, p, values)
        }
    }

    /// Width and height of the images.
    pub fn size(&self) -> [usize; 2] {
        [self.shape[2] * self.patch, self.shape[1] * self.patch]
    }

    /// The bytes of each image, none where it was not finite; waits for the stream.
    pub fn read(&self) -> Result<Vec<Option<Vec<u8>>>> {
        let (all, values) = (self.buffer.read()?, self.values());
        let (images, blocks) = all.split_at(self.shape[0] * values);
        let finite = |blocks: &[u8]| blocks.iter().all(|&bad| bad == 0);
        let image = |(image, blocks): (&[u8], &[u8])| finite(blocks).then(|| image.to_vec());
        let both = images.chunks(values).zip(blocks.chunks(self.blocks));
        Ok(both.map(image).collect())
    }
}
