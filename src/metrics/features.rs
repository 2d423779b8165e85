//! Feature networks: images in, rows of f32 out, one matrix [B,D] per tap.

use image::RgbImage;

use crate::error::Result;
use crate::world::{Bytes, Parcel};

/// A layer of a network whose values are used as features.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tap {
    /// Name in reports: `2048`, `spatial`, `logits`, `class-token`.
    pub name: &'static str,
    /// Dimensions D.
    pub width: usize,
}

/// Rows [N,D], contiguous.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    pub width: usize,
    pub values: Vec<f32>,
}

impl Rows {
    /// No rows yet.
    pub fn empty(width: usize) -> Self {
        Self {
            width,
            values: Vec::new(),
        }
    }

    /// N.
    pub fn count(&self) -> usize {
        self.values.len() / self.width
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.width)
    }
}

/// Features of a batch of images, one matrix per tap, on their way between processes.
pub struct Features(pub Vec<Rows>);

impl Features {
    /// As [`Parcel::pack`] of these rows.
    pub fn pack_rows(all: &[Rows], bytes: &mut Bytes) {
        bytes.put_u32(all.len() as u32);
        for rows in all {
            bytes.put_u32(rows.width as u32);
            bytes.put_f32s(&rows.values);
        }
    }
}

impl Parcel for Features {
    fn pack(&self, bytes: &mut Bytes) {
        Self::pack_rows(&self.0, bytes);
    }

    fn unpack(bytes: &mut Bytes) -> Result<Self> {
        let rows = (0..bytes.u32()?).map(|_| {
            let (width, values) = (bytes.u32()? as usize, bytes.f32s()?);
            let fits = width > 0 && values.len().is_multiple_of(width);
            anyhow::ensure!(fits, "rows of {width} among {} values", values.len());
            Ok(Rows { width, values })
        });
        rows.collect::<Result<_>>().map(Self)
    }
}

/// A frozen network whose outputs are compared instead of pixels.
///
/// Name, weights and preprocessing are its identity: features of two networks that differ in one of
/// them must never be mixed.
pub trait FeatureNetwork {
    /// The network's name, independent of its weights file: `inception-2015-12-05`.
    fn name(&self) -> &'static str;

    /// SHA-256 of the weights file.
    fn weights_hash(&self) -> &str;

    /// How an image becomes the network's input: the name of the resize and normalization.
    fn preprocess(&self) -> &'static str;

    /// The outputs of [`FeatureNetwork::features`], in order.
    fn taps(&self) -> &[Tap];

    /// The features of `images`, which may differ in size: one matrix per tap, one row per image.
    /// An image's row does not depend on the other images.
    fn features(&self, images: &[RgbImage]) -> Result<Vec<Rows>>;
}
