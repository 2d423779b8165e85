//! Latents to images: D(z) in 8 bits.
//!
//! On a GPU an image stays there until it is bytes. Few images at a time are decoded by a captured
//! CUDA graph, since the host needs longer to launch their kernels than the GPU to run them.

use candle_core::Tensor;
use image::RgbImage;

use super::image::named_rgb;
use super::sampler::decode;
use crate::error::Result;
use crate::model::tokenizer::Tokenizer;

/// Decodes latents, batch after batch.
pub struct LatentDecoder<'a> {
    tokenizer: &'a Tokenizer,
    #[cfg(feature = "cuda")]
    batch: std::sync::Mutex<Option<on_gpu::DecodedBatch>>,
}

impl<'a> LatentDecoder<'a> {
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self {
            tokenizer,
            #[cfg(feature = "cuda")]
            batch: std::sync::Mutex::default(),
        }
    }

    /// D(z) for z [B,h,w,d].
    ///
    /// Errors: an image holds NaN or infinity; it is called `name(i)`.
    pub fn images(&self, z: &Tensor, name: impl Fn(usize) -> String) -> Result<Vec<RgbImage>> {
        #[cfg(feature = "cuda")]
        if z.device().is_cuda() {
            return self.on_gpu(z, name);
        }
        named_rgb(&decode(self.tokenizer, z)?, name)
    }
}

#[cfg(feature = "cuda")]
mod on_gpu {
    use std::sync::MutexGuard;

    use candle_core::{DType, Result, Tensor, Var, bail};
    use image::RgbImage;

    use super::LatentDecoder;
    use crate::error::{self, Context};
    use crate::model::tokenizer::Tokenizer;
    use crate::ops::bytes::cuda::Bytes;
    use crate::ops::cuda::{Gpu, Graph};
    use crate::sample::image::not_finite;
    use crate::sample::sampler::DECODED_AT_ONCE;

    /// The most images that are decoded by a captured graph; of more, the GPU is the slower side.
    const CAPTURED: usize = 8;

    /// The images of latents of one shape.
    pub struct DecodedBatch {
        /// [B,h,w,d]
        shape: Vec<usize>,
        bytes: Bytes,
        /// With the latents that it reads.
        graph: Option<(Graph, Var)>,
    }

    impl DecodedBatch {
        /// For latents of z's shape.
        fn new(gpu: &Gpu, tokenizer: &Tokenizer, z: &Tensor) -> Result<Self> {
            let bytes = {
                // A first run outside the capture loads kernels and packs weights.
                let map = tokenizer.pixel_map(z)?;
                let bytes = Bytes::new(gpu, map.dims4()?.into(), tokenizer.patch())?;
                bytes.write(gpu, &map)?;
                bytes
            };
            let graph = match z.dim(0)? <= CAPTURED {
                true => {
                    let latents = Var::zeros(z.shape(), DType::F32, z.device())?;
                    let read = latents.as_detached_tensor();
                    let work = || bytes.write(gpu, &tokenizer.pixel_map(&read)?);
                    Some((Graph::capture(gpu, work)?, latents))
                }
                false => None,
            };
            Ok(Self {
                shape: z.dims().to_vec(),
                bytes,
                graph,
            })
        }

        fn launch(&self, gpu: &Gpu, tokenizer: &Tokenizer, z: &Tensor) -> Result<()> {
            match &self.graph {
                Some((graph, latents)) => {
                    latents.set(z)?;
                    graph.launch()
                }
                None => self.bytes.write(gpu, &tokenizer.pixel_map(z)?),
            }
        }
    }

    impl LatentDecoder<'_> {
        /// Makes the bytes of D(z) on the GPU, without waiting for them; z has at most
        /// [`DECODED_AT_ONCE`] images.
        pub fn launch(&self, z: &Tensor) -> Result<()> {
            self.launched(z).map(|_| ())
        }

        fn launched(&self, z: &Tensor) -> Result<MutexGuard<'_, Option<DecodedBatch>>> {
            let gpu = Gpu::of(z.device().as_cuda_device()?)?;
            let z = z.contiguous()?;
            let mut batch = self
                .batch
                .lock()
                .expect("no thread panics while it holds this lock");
            if batch.as_ref().is_none_or(|batch| batch.shape != z.dims()) {
                *batch = None; // its memory first
                *batch = Some(DecodedBatch::new(&gpu, self.tokenizer, &z)?);
            }
            match &*batch {
                Some(batch) => batch.launch(&gpu, self.tokenizer, &z)?,
                None => bail!("a batch was just made ready"),
            }
            Ok(batch)
        }

        pub(super) fn on_gpu(
            &self,
            z: &Tensor,
            name: impl Fn(usize) -> String,
        ) -> error::Result<Vec<RgbImage>> {
            let count = z.dim(0)?;
            let mut images = Vec::with_capacity(count);
            for first in (0..count).step_by(DECODED_AT_ONCE) {
                let part = z.narrow(0, first, DECODED_AT_ONCE.min(count - first))?;
                let batch = self.launched(&part)?;
                let bytes = batch.as_ref().context("a batch was just decoded")?;
                let [width, height] = bytes.bytes.size().map(|n| n as u32);
                for (i, image) in bytes.bytes.read()?.into_iter().enumerate() {
                    let Some(image) = image else {
                        return Err(not_finite(&name(first + i), "its pixels"));
                    };
                    images
                        .push(RgbImage::from_raw(width, height, image).context("an empty image")?);
                }
            }
            Ok(images)
        }
    }
}
