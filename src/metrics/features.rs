//! What a feature network is: images in, rows of f32 out, one matrix [B,D] a tap.

use image::RgbImage;

use crate::error::Result;

/// A place in a network whose values are features.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tap {
    /// As the report names it: `2048`, `spatial`, `logits`, `class-token`.
    pub name: &'static str,
    /// D.
    pub width: usize,
}

/// Rows [N,D], one after the other.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    pub width: usize,
    pub values: Vec<f32>,
}

impl Rows {
    /// No row yet.
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

/// A frozen network whose outputs are compared instead of pixels.
///
/// Its name, weights and preprocessing are its identity: features of two networks that differ in one of them must
/// never meet.
pub trait FeatureNetwork {
    /// The network, without its weights: `inception-2015-12-05`.
    fn name(&self) -> &'static str;

    /// SHA-256 of the weights file.
    fn weights_hash(&self) -> &str;

    /// How a picture becomes the network's input: the name of the resize and of what follows.
    fn preprocess(&self) -> &'static str;

    /// What [`FeatureNetwork::features`] gives, in its order.
    fn taps(&self) -> &[Tap];

    /// The features of `images`, which may differ in size: a matrix a tap, a row an image. An image's row does not
    /// depend on the others.
    fn features(&self, images: &[RgbImage]) -> Result<Vec<Rows>>;
}
