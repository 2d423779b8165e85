//! Images as bytes to tensors: y = x/127.5 − 1 in f32, mirrored where asked. B images of H×W×3
//! bytes → [B,H,W,3]. Both sides divide and subtract as IEEE 754 says, so their bits are equal. No
//! gradient.

#[cfg(feature = "cuda")]
pub mod check;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod tests;

use candle_core::{Device, Result, Tensor, bail};

/// Images of one size, as they are decoded.
#[derive(Debug, Clone, Copy)]
pub struct Bytes<'a> {
    pub height: usize,
    pub width: usize,
    /// H·W·3 bytes each.
    pub images: &'a [&'a [u8]],
    /// Which of them are to be mirrored.
    pub mirrored: &'a [bool],
}

impl Bytes<'_> {
    fn check(&self) -> Result<()> {
        let line = 3 * self.width;
        if let Some(image) = self.images.iter().find(|i| i.len() != self.height * line) {
            bail!(
                "pixels: {} bytes are no image of {}×{}",
                image.len(),
                self.width,
                self.height
            );
        }
        if self.mirrored.len() != self.images.len() {
            bail!(
                "pixels: {} images, {} said to be mirrored or not",
                self.images.len(),
                self.mirrored.len()
            );
        }
        if self.height * line == 0 || self.images.is_empty() {
            bail!("pixels: no images, or images without pixels");
        }
        Ok(())
    }

    fn shape(&self) -> (usize, usize, usize, usize) {
        (self.images.len(), self.height, self.width, 3)
    }
}

/// Makes tensors of bytes on one device.
pub struct Pixels {
    device: Device,
    /// Copies them so that the GPU does not wait for the host.
    #[cfg(feature = "cuda")]
    upload: crate::ops::cuda::Upload<u8>,
}

impl Pixels {
    pub fn new(device: &Device) -> Self {
        Self {
            device: device.clone(),
            #[cfg(feature = "cuda")]
            upload: Default::default(),
        }
    }

    /// [B,H,W,3] in [-1,1], f32.
    pub fn tensor(&mut self, bytes: Bytes) -> Result<Tensor> {
        bytes.check()?;
        match &self.device {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => cuda::tensor(device, &mut self.upload, bytes),
            device => Tensor::from_vec(cpu::values(bytes), bytes.shape(), device),
        }
    }
}
