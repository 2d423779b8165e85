//! What `eval-vae` measures of a batch of images, on its way between processes, and the sum over
//! all batches, which rank 0 takes in their order.

use candle_core::Tensor;
use image::RgbImage;
use sha2::{Digest, Sha256};

use crate::error::{Context, Result};
use crate::metrics::features::Features;
use crate::metrics::reconstruction::{Compared, Quality};
use crate::store::digest::hex;
use crate::train::usage::Usage;
use crate::world::{Bytes, Parcel};

/// What is measured of a batch. One of which no image could be read has nothing but `skipped`.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Measured {
    /// Images that could not be read.
    pub skipped: u32,
    /// The SHA-256 of each image's cut, one behind another.
    pub originals: Vec<u8>,
    /// Inception's outputs for the originals.
    pub features: Compared,
    /// The codes of all positions and images for t = 1, then for t = 2, …
    pub codes: Vec<u32>,
    /// For the last steps up to T.
    pub steps: Vec<Compared>,
}

/// Bytes of a SHA-256.
const DIGEST: usize = 32;

impl Measured {
    /// The digests of `cuts`.
    pub fn digests(cuts: &[RgbImage]) -> Vec<u8> {
        let digest = |cut: &RgbImage| {
            let (width, height) = cut.dimensions();
            let mut digest = Sha256::new();
            digest.update(width.to_le_bytes());
            digest.update(height.to_le_bytes());
            digest.update(cut.as_raw());
            digest.finalize()
        };
        cuts.iter().flat_map(digest).collect()
    }

    /// The codes in maps u32 [T,B,h,w].
    pub fn codes(maps: &Tensor) -> Result<Vec<u32>> {
        Ok(maps.flatten_all()?.to_vec1()?)
    }

    /// Images that were read.
    fn count(&self) -> usize {
        self.originals.len() / DIGEST
    }
}

impl Parcel for Measured {
    fn pack(&self, bytes: &mut Bytes) {
        bytes.put_u32(self.skipped);
        bytes.put_bytes(&self.originals);
        self.features.pack(bytes);
        bytes.put_u32s(&self.codes);
        bytes.put_u32(self.steps.len() as u32);
        self.steps.iter().for_each(|step| step.pack(bytes));
    }

    fn unpack(bytes: &mut Bytes) -> Result<Self> {
        Ok(Self {
            skipped: bytes.u32()?,
            originals: bytes.bytes()?.to_vec(),
            features: Compared::unpack(bytes)?,
            codes: bytes.u32s()?,
            steps: (0..bytes.u32()?)
                .map(|_| Compared::unpack(bytes))
                .collect::<Result<_>>()?,
        })
    }
}

impl Parcel for Compared {
    fn pack(&self, bytes: &mut Bytes) {
        for figures in [&self.psnr, &self.ssim, &self.lpips] {
            bytes.put_f64s(figures);
        }
        Features::pack_rows(&self.features, bytes);
    }

    fn unpack(bytes: &mut Bytes) -> Result<Self> {
        Ok(Self {
            psnr: bytes.f64s()?,
            ssim: bytes.f64s()?,
            lpips: bytes.f64s()?,
            features: Features::unpack(bytes)?.0,
        })
    }
}

/// The sum over all batches.
pub(super) struct Total {
    pub images: usize,
    pub skipped: usize,
    originals: Sha256,
    /// Inception's outputs for the originals.
    pub features: Quality,
    /// For the last steps up to T.
    pub qualities: Vec<Quality>,
    pub usage: Usage,
    /// T and K.
    codes: (usize, usize),
}

impl Total {
    /// Of nothing, for the last `kept` of `steps` steps, which choose among `codes` codes.
    pub fn new(kept: usize, steps: usize, codes: usize) -> Self {
        Self {
            images: 0,
            skipped: 0,
            originals: Sha256::new(),
            features: Quality::default(),
            qualities: vec![Quality::default(); kept],
            usage: Usage::new(steps, codes),
            codes: (steps, codes),
        }
    }

    /// Adds the batch that follows those before it.
    ///
    /// Errors: an image's features are not finite; another model's batch.
    pub fn add(&mut self, batch: &Measured) -> Result<()> {
        self.skipped += batch.skipped as usize;
        if batch.count() == 0 {
            return Ok(());
        }
        let (steps, size) = self.codes;
        let other = "what was measured is of another model";
        let positions = batch.codes.len() / steps;
        let fits = positions > 0 && batch.codes.len() == positions * steps;
        anyhow::ensure!(fits && batch.steps.len() == self.qualities.len(), other);
        self.originals.update(&batch.originals);
        self.features.add(&batch.features)?;
        for (quality, step) in self.qualities.iter_mut().zip(&batch.steps) {
            quality.add(step)?;
        }
        let mut counts = vec![vec![0; size]; steps];
        for (counts, codes) in counts.iter_mut().zip(batch.codes.chunks_exact(positions)) {
            for code in codes {
                *counts.get_mut(*code as usize).context(other)? += 1;
            }
        }
        self.usage.add(&counts);
        self.images += batch.count();
        Ok(())
    }

    /// The SHA-256 of all originals' digests.
    pub fn originals(&self) -> String {
        hex(&self.originals.clone().finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Rows;

    fn compared(values: &[f64]) -> Compared {
        let values: Vec<f32> = values.iter().map(|x| *x as f32).collect();
        Compared {
            psnr: values.iter().map(|x| f64::from(*x) / 3.0).collect(),
            ssim: vec![f64::NAN; values.len()],
            lpips: Vec::new(),
            features: vec![Rows { width: 1, values }],
        }
    }

    fn batch(codes: &[u32]) -> Measured {
        Measured {
            skipped: 1,
            originals: vec![7; 2 * DIGEST],
            features: compared(&[1.0, 2.5]),
            codes: codes.to_vec(),
            steps: vec![compared(&[0.1, -4.0])],
        }
    }

    #[test]
    fn what_is_packed_is_unpacked_to_the_bit() -> Result<()> {
        let pack = |measured: &Measured| {
            let mut bytes = Bytes::default();
            measured.pack(&mut bytes);
            bytes.into_vec()
        };
        for measured in [batch(&[3, 0, 1, 1]), Measured::default()] {
            let packed = pack(&measured);
            let mut bytes = Bytes::from(packed.clone());
            let unpacked = Measured::unpack(&mut bytes)?;
            bytes.end()?;
            assert_eq!(pack(&unpacked), packed);
            assert_eq!(unpacked.codes, measured.codes);
            assert_eq!(unpacked.originals, measured.originals);
            assert_eq!(unpacked.features.psnr, measured.features.psnr);
            assert_eq!(unpacked.features.features, measured.features.features);
        }
        Ok(())
    }

    #[test]
    fn a_batch_of_another_model_is_refused() -> Result<()> {
        let mut total = Total::new(1, 2, 4);
        total.add(&batch(&[3, 0, 1, 1]))?;
        total.add(&Measured {
            skipped: 2,
            ..Measured::default()
        })?;
        assert_eq!((total.images, total.skipped), (2, 3));
        assert_eq!(total.usage.used(), [2, 1]);
        for codes in [&[4, 0, 0, 0][..], &[0, 0, 0], &[]] {
            let error = total.add(&batch(codes)).unwrap_err().to_string();
            assert!(error.contains("another model"), "{codes:?}: {error}");
        }
        Ok(())
    }
}
