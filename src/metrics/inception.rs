//! FID's Inception-v3 (TensorFlow's graph of 2015-12-05, Szegedy et al. 2015): [B,299,299,3] →
//! features at four depths.
//!
//! Tensor names are pytorch-fid's. Every convolution is followed by BatchNorm (eps 1e-3), folded
//! into it when the weights are loaded, and ReLU. It differs from torchvision's network in its
//! average pools, which do not count the padding, in the max pool of the last block, and in its
//! 1008 outputs.
//!
//! It computes in f32, on a Hopper GPU in f16 with sums in f32.

mod blocks;
mod layers;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Result, Shape, Tensor};
use image::RgbImage;

use super::features::{FeatureNetwork, Rows, Tap};
use super::resize::Preprocess;
use super::weights::read_hashed;
use crate::error::{self, hinted};
use crate::ops;
use crate::store::Scope;
use blocks::{Stage, stages};

/// Name in reports.
pub const NAME: &str = "inception-2015-12-05";

/// Number of channels of `Mixed_6d`'s first branch that are sFID's spatial features.
const SPATIAL_CHANNELS: usize = 7;

/// The outputs of the network, in the order in which they become available.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Output {
    /// After the first max pool, averaged over positions.
    Pool64,
    /// After the second max pool, averaged over positions.
    Pool192,
    /// Seven channels of `Mixed_6d` at 17×17 positions, in the order (row, column, channel), for
    /// sFID.
    Spatial,
    /// After `Mixed_6e`, averaged over positions.
    Pool768,
    /// After `Mixed_7c`, averaged over positions: the features of FID.
    Pool2048,
    /// `fc` without its bias, for the Inception Score.
    Logits,
}

impl Output {
    pub fn name(self) -> &'static str {
        match self {
            Output::Pool64 => "64",
            Output::Pool192 => "192",
            Output::Spatial => "spatial",
            Output::Pool768 => "768",
            Output::Pool2048 => "2048",
            Output::Logits => "logits",
        }
    }

    /// The features with `dims` dimensions.
    pub fn of_dims(dims: usize) -> Option<Self> {
        match dims {
            64 => Some(Output::Pool64),
            192 => Some(Output::Pool192),
            768 => Some(Output::Pool768),
            2048 => Some(Output::Pool2048),
            _ => None,
        }
    }
}

pub struct Inception {
    stages: Vec<Stage>,
    /// [1008,2048], if logits are requested.
    classifier: Option<Tensor>,
    preprocess: Preprocess,
    /// The outputs of [`FeatureNetwork::features`].
    outputs: Vec<Output>,
    taps: Vec<Tap>,
    hash: String,
    device: Device,
    /// The dtype of the maps.
    compute: DType,
}

impl Inception {
    /// The network from the weights file at `path`, giving `outputs`, for images resized by
    /// `preprocess`.
    ///
    /// Errors: the file holds another network; `outputs` includes the logits and the file has no
    /// `fc`.
    pub fn open(
        path: &Path,
        outputs: &[Output],
        preprocess: Preprocess,
        device: &Device,
    ) -> error::Result<Self> {
        let (weights, hash) = read_hashed(path)?;
        Self::new(&weights, 1, outputs, preprocess, hash, device)
            .and_then(Self::for_inference)
            .map_err(|e| e.context(format!("{}", path.display())))
    }

    /// The same with maps of `compute`: f32, or f16 on a Hopper GPU.
    pub fn computing(self, compute: DType) -> Self {
        Self { compute, ..self }
    }

    /// The same with maps of f16 on a Hopper GPU, the only one that has kernels for them.
    pub fn for_inference(self) -> error::Result<Self> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(cuda) = &self.device
            && ops::cuda::Gpu::of(cuda)?.is_hopper()
        {
            return Ok(self.computing(DType::F16));
        }
        Ok(self)
    }

    /// The names and shapes of the tensors up to `Mixed_7c`, every width divided by `divisor`.
    pub fn shapes(divisor: usize) -> Result<BTreeMap<String, Shape>> {
        let plan = Scope::plan();
        stages(&plan, divisor, Output::Pool2048)?;
        Ok(plan.shapes())
    }

    /// Like [`Inception::open`], from tensors in memory; every width is divided by `divisor` (1,
    /// except in tests).
    pub fn new(
        weights: &BTreeMap<String, Tensor>,
        divisor: usize,
        outputs: &[Output],
        preprocess: Preprocess,
        hash: String,
        device: &Device,
    ) -> error::Result<Self> {
        let scope = Scope::load(weights, device);
        let mismatch = |e: candle_core::Error| {
            hinted(
                format!("not FID's Inception-v3: {e}"),
                "expected the tensors of pytorch-fid's pt_inception-2015-12-05-6726825d.pth, by their names",
            )
        };
        let last = outputs.iter().max().copied().unwrap_or(Output::Pool2048);
        let stages = stages(&scope, divisor, last).map_err(mismatch)?;
        let classifier = match last {
            Output::Logits => Some(classifier(weights, 2048 / divisor, device)?),
            _ => None,
        };
        let taps = outputs.iter().map(|output| Tap {
            name: output.name(),
            width: match output {
                Output::Pool64 => 64 / divisor,
                Output::Pool192 => 192 / divisor,
                Output::Spatial => 17 * 17 * SPATIAL_CHANNELS,
                Output::Pool768 => 768 / divisor,
                Output::Pool2048 => 2048 / divisor,
                Output::Logits => classifier.as_ref().map_or(0, |fc| fc.dims()[0]),
            },
        });
        Ok(Self {
            taps: taps.collect(),
            stages,
            classifier,
            preprocess,
            outputs: outputs.to_vec(),
            hash,
            device: device.clone(),
            compute: DType::F32,
        })
    }

    /// The outputs for preprocessed images [B,299,299,3], each a matrix [B,D].
    pub fn forward(&self, x: &Tensor) -> Result<Vec<Rows>> {
        let mut known: Vec<(Output, Rows)> = Vec::new();
        let wanted = |output: Output| self.outputs.contains(&output);
        let mut x = x.to_dtype(self.compute)?;
        for stage in &self.stages {
            for block in &stage.blocks {
                x = block.forward(&x)?;
            }
            match stage.output {
                Output::Spatial if wanted(Output::Spatial) => {
                    let first = x.narrow(3, 0, SPATIAL_CHANNELS)?;
                    known.push((Output::Spatial, rows(&first.flatten_from(1)?)?));
                }
                output if wanted(output) => known.push((output, means(&x)?)),
                _ => {}
            }
        }
        if let Some(classifier) = &self.classifier {
            let pooled = means(&x)?;
            let shape = (pooled.count(), pooled.width);
            let pooled = Tensor::from_vec(pooled.values, shape, &self.device)?;
            known.push((
                Output::Logits,
                rows(&ops::linear(&pooled, classifier, None)?)?,
            ));
        }
        let mut outputs = Vec::with_capacity(self.outputs.len());
        for output in &self.outputs {
            if let Some((_, rows)) = known.iter().find(|(known, _)| known == output) {
                outputs.push(rows.clone());
            }
        }
        Ok(outputs)
    }
}

/// `fc.weight` [1008,2048].
fn classifier(
    weights: &BTreeMap<String, Tensor>,
    width: usize,
    device: &Device,
) -> error::Result<Tensor> {
    let Some(weight) = weights.get("fc.weight") else {
        return Err(hinted(
            "the weights have no `fc.weight`: the Inception Score cannot be computed, everything else can",
            "leave out `is` in --metrics, or use pytorch-fid's pt_inception-2015-12-05-6726825d.pth, which has it (--weights FILE|URL)",
        ));
    };
    match *weight.dims() {
        [_, found] if found == width => Ok(weight.to_dtype(DType::F32)?.to_device(device)?),
        ref other => Err(hinted(
            format!("`fc.weight`: expected [1008,{width}], found {other:?}"),
            "",
        )),
    }
}

/// A map [B,H,W,C] averaged over its positions: [B,C].
fn means(x: &Tensor) -> Result<Rows> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return rows(&ops::mean_over_positions(&x.contiguous()?)?);
    }
    let (_, h, w, c) = x.dims4()?;
    let maps = rows(&x.flatten_from(1)?)?;
    let mut values = Vec::with_capacity(maps.count() * c);
    let mut sums = vec![0f64; c];
    for map in maps.iter() {
        sums.fill(0.0);
        for position in map.chunks_exact(c) {
            for (sum, &x) in sums.iter_mut().zip(position) {
                *sum += f64::from(x);
            }
        }
        values.extend(sums.iter().map(|sum| (sum / (h * w) as f64) as f32));
    }
    Ok(Rows { width: c, values })
}

/// A matrix [B,D] in memory.
fn rows(x: &Tensor) -> Result<Rows> {
    let (_, width) = x.dims2()?;
    let x = x.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
    let values = x.flatten_all()?.to_vec1()?;
    Ok(Rows { width, values })
}

impl FeatureNetwork for Inception {
    fn name(&self) -> &'static str {
        NAME
    }

    fn weights_hash(&self) -> &str {
        &self.hash
    }

    fn preprocess(&self) -> &'static str {
        self.preprocess.name()
    }

    fn taps(&self) -> &[Tap] {
        &self.taps
    }

    fn features(&self, images: &[RgbImage]) -> error::Result<Vec<Rows>> {
        let preprocess = self.preprocess;
        let x = preprocess.apply_on(images, &self.device, self.compute)?;
        Ok(self.forward(&x)?)
    }
}

#[cfg(test)]
mod tests;
