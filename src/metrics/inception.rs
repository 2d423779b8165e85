//! FID's Inception-v3 (TensorFlow's graph of 2015-12-05, Szegedy et al. 2015): [B,299,299,3] → features of four depths.
//!
//! Tensor names are pytorch-fid's. Every convolution is followed by BatchNorm (eps 1e-3), folded into it when the
//! weights are read, and ReLU. It differs from torchvision's network in its average pools, which do not count the
//! padding, in the maximum pool of the last block, and in its 1008 outputs.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Result, Tensor};
use image::RgbImage;

use super::features::{FeatureNetwork, Rows, Tap};
use super::resize::Preprocess;
use crate::error::{self, hinted};
use crate::ops::{self, FrozenConv2d, Padding};
use crate::store::{Init, Scope, digest, tensors};

/// As reports name it.
pub const NAME: &str = "inception-2015-12-05";

const BATCH_NORM_EPS: f64 = 1e-3;

/// Channels of `Mixed_6d`'s first branch that are the spatial features of sFID.
const SPATIAL_CHANNELS: usize = 7;

/// What the network gives, from the first to the last to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Output {
    /// After the first maximum pool, averaged over positions.
    Pool64,
    /// After the second maximum pool, averaged over positions.
    Pool192,
    /// `Mixed_6d`'s 17×17 positions of seven channels, in the order (row, column, channel): sFID's.
    Spatial,
    /// After `Mixed_6e`, averaged over positions.
    Pool768,
    /// After `Mixed_7c`, averaged over positions: the features of FID.
    Pool2048,
    /// `fc` without its bias: what the Inception Score is made of.
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

    /// The features of so many dimensions.
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

enum Layer {
    /// With its BatchNorm in it, then ReLU.
    Convolution(FrozenConv2d),
    MaxPool {
        stride: usize,
        padding: usize,
    },
    /// 3×3, stride 1, as wide as its input.
    AveragePool,
    /// Several layers of the same input, side by side in the channels.
    Fork(Vec<Layer>),
}

/// Branches of the same input, side by side in the channels.
struct Block(Vec<Vec<Layer>>);

/// Blocks up to a place whose values are wanted.
struct Stage {
    blocks: Vec<Block>,
    output: Output,
}

pub struct Inception {
    stages: Vec<Stage>,
    /// [1008,2048], where logits are wanted.
    classifier: Option<Tensor>,
    preprocess: Preprocess,
    /// What [`FeatureNetwork::features`] gives.
    outputs: Vec<Output>,
    taps: Vec<Tap>,
    hash: String,
    device: Device,
}

/// How a convolution's windows lie: on every position, padded by zeros, or only where they lie inside the map.
#[derive(Clone, Copy)]
enum Windows {
    Same,
    Valid { stride: usize },
}

/// Takes a block's layers from its scope; `width` is that of the input of what is made next.
struct Builder<'a> {
    scope: &'a Scope,
    /// Every width is divided by it: 1, but for tests.
    divisor: usize,
}

impl Builder<'_> {
    /// `name`: (kh, kw), from `input` to `output` channels.
    fn convolution(
        &self,
        name: &str,
        kernel: (usize, usize),
        (input, output): (usize, usize),
        windows: Windows,
    ) -> Result<Layer> {
        let (input, output) = (self.narrow(input), output / self.divisor);
        let scope = self.scope.push(name);
        let get = |scope: &Scope, name: &str, shape: &[usize]| {
            let tensor = scope.get(name, shape, Init::Zeros)?;
            tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)
        };
        let (kh, kw) = kernel;
        let weight = get(&scope.push("conv"), "weight", &[output, input, kh, kw])?;
        let norm = scope.push("bn");
        let of_norm = |name: &str| get(&norm, name, &[output]);
        // y = γ·(conv − mean)/√(var + eps) + β
        let deviation = (of_norm("running_var")? + BATCH_NORM_EPS)?.sqrt()?;
        let scale = (of_norm("weight")? / deviation)?;
        let bias = (of_norm("bias")? - (of_norm("running_mean")? * &scale)?)?;
        let weight = weight.broadcast_mul(&scale.reshape((output, 1, 1, 1))?)?;
        let device = self.scope.device();
        let (stride, padding) = match windows {
            Windows::Same => (1, Padding::new(kh / 2, kh / 2, kw / 2, kw / 2)),
            Windows::Valid { stride } => (stride, Padding::same(0)),
        };
        let weight = weight.to_dtype(DType::F32)?.to_device(device)?;
        let bias = bias.to_dtype(DType::F32)?.to_device(device)?;
        let convolution = FrozenConv2d::new(&weight, &bias, stride, padding)?;
        Ok(Layer::Convolution(convolution))
    }

    fn same(&self, name: &str, kernel: (usize, usize), io: (usize, usize)) -> Result<Layer> {
        self.convolution(name, kernel, io, Windows::Same)
    }

    fn halving(&self, name: &str, io: (usize, usize)) -> Result<Layer> {
        self.convolution(name, (3, 3), io, Windows::Valid { stride: 2 })
    }

    /// Channels of an input; the picture's own three stay.
    fn narrow(&self, width: usize) -> usize {
        if width == 3 { 3 } else { width / self.divisor }
    }
}

const HALVING_POOL: Layer = Layer::MaxPool {
    stride: 2,
    padding: 0,
};

/// 35×35: 64 + 64 + 96 + `pool` channels.
fn block_a(b: &Builder, c: usize, pool: usize) -> Result<Block> {
    Ok(Block(vec![
        vec![b.same("branch1x1", (1, 1), (c, 64))?],
        vec![
            b.same("branch5x5_1", (1, 1), (c, 48))?,
            b.same("branch5x5_2", (5, 5), (48, 64))?,
        ],
        vec![
            b.same("branch3x3dbl_1", (1, 1), (c, 64))?,
            b.same("branch3x3dbl_2", (3, 3), (64, 96))?,
            b.same("branch3x3dbl_3", (3, 3), (96, 96))?,
        ],
        vec![
            Layer::AveragePool,
            b.same("branch_pool", (1, 1), (c, pool))?,
        ],
    ]))
}

/// 35×35 → 17×17: 384 + 96 + 288 channels.
fn block_b(b: &Builder, c: usize) -> Result<Block> {
    Ok(Block(vec![
        vec![b.halving("branch3x3", (c, 384))?],
        vec![
            b.same("branch3x3dbl_1", (1, 1), (c, 64))?,
            b.same("branch3x3dbl_2", (3, 3), (64, 96))?,
            b.halving("branch3x3dbl_3", (96, 96))?,
        ],
        vec![HALVING_POOL],
    ]))
}

/// 17×17: four times 192 channels, through `m`.
fn block_c(b: &Builder, c: usize, m: usize) -> Result<Block> {
    Ok(Block(vec![
        vec![b.same("branch1x1", (1, 1), (c, 192))?],
        vec![
            b.same("branch7x7_1", (1, 1), (c, m))?,
            b.same("branch7x7_2", (1, 7), (m, m))?,
            b.same("branch7x7_3", (7, 1), (m, 192))?,
        ],
        vec![
            b.same("branch7x7dbl_1", (1, 1), (c, m))?,
            b.same("branch7x7dbl_2", (7, 1), (m, m))?,
            b.same("branch7x7dbl_3", (1, 7), (m, m))?,
            b.same("branch7x7dbl_4", (7, 1), (m, m))?,
            b.same("branch7x7dbl_5", (1, 7), (m, 192))?,
        ],
        vec![Layer::AveragePool, b.same("branch_pool", (1, 1), (c, 192))?],
    ]))
}

/// 17×17 → 8×8: 320 + 192 + 768 channels.
fn block_d(b: &Builder, c: usize) -> Result<Block> {
    Ok(Block(vec![
        vec![
            b.same("branch3x3_1", (1, 1), (c, 192))?,
            b.halving("branch3x3_2", (192, 320))?,
        ],
        vec![
            b.same("branch7x7x3_1", (1, 1), (c, 192))?,
            b.same("branch7x7x3_2", (1, 7), (192, 192))?,
            b.same("branch7x7x3_3", (7, 1), (192, 192))?,
            b.halving("branch7x7x3_4", (192, 192))?,
        ],
        vec![HALVING_POOL],
    ]))
}

/// 8×8: 320 + 768 + 768 + 192 channels.
fn block_e(b: &Builder, c: usize, pool: Layer) -> Result<Block> {
    let fork = |across: &str, along: &str| -> Result<Layer> {
        Ok(Layer::Fork(vec![
            b.same(across, (1, 3), (384, 384))?,
            b.same(along, (3, 1), (384, 384))?,
        ]))
    };
    Ok(Block(vec![
        vec![b.same("branch1x1", (1, 1), (c, 320))?],
        vec![
            b.same("branch3x3_1", (1, 1), (c, 384))?,
            fork("branch3x3_2a", "branch3x3_2b")?,
        ],
        vec![
            b.same("branch3x3dbl_1", (1, 1), (c, 448))?,
            b.same("branch3x3dbl_2", (3, 3), (448, 384))?,
            fork("branch3x3dbl_3a", "branch3x3dbl_3b")?,
        ],
        vec![pool, b.same("branch_pool", (1, 1), (c, 192))?],
    ]))
}

/// All stages up to the output `last`.
fn stages(scope: &Scope, divisor: usize, last: Output) -> Result<Vec<Stage>> {
    let top = Builder { scope, divisor };
    let within = |name: &str, make: &dyn Fn(&Builder) -> Result<Block>| {
        let scope = &scope.push(name);
        make(&Builder { scope, divisor })
    };
    let valid =
        |name: &str, io, stride| top.convolution(name, (3, 3), io, Windows::Valid { stride });
    let chain = |layers| Block(vec![layers]);
    let mut stages = vec![Stage {
        blocks: vec![chain(vec![
            valid("Conv2d_1a_3x3", (3, 32), 2)?,
            valid("Conv2d_2a_3x3", (32, 32), 1)?,
            top.same("Conv2d_2b_3x3", (3, 3), (32, 64))?,
            HALVING_POOL,
        ])],
        output: Output::Pool64,
    }];
    if last >= Output::Pool192 {
        stages.push(Stage {
            blocks: vec![chain(vec![
                top.same("Conv2d_3b_1x1", (1, 1), (64, 80))?,
                valid("Conv2d_4a_3x3", (80, 192), 1)?,
                HALVING_POOL,
            ])],
            output: Output::Pool192,
        });
    }
    if last >= Output::Spatial {
        stages.push(Stage {
            blocks: vec![
                within("Mixed_5b", &|b| block_a(b, 192, 32))?,
                within("Mixed_5c", &|b| block_a(b, 256, 64))?,
                within("Mixed_5d", &|b| block_a(b, 288, 64))?,
                within("Mixed_6a", &|b| block_b(b, 288))?,
                within("Mixed_6b", &|b| block_c(b, 768, 128))?,
                within("Mixed_6c", &|b| block_c(b, 768, 160))?,
                within("Mixed_6d", &|b| block_c(b, 768, 160))?,
            ],
            output: Output::Spatial,
        });
    }
    if last >= Output::Pool768 {
        stages.push(Stage {
            blocks: vec![within("Mixed_6e", &|b| block_c(b, 768, 192))?],
            output: Output::Pool768,
        });
    }
    if last >= Output::Pool2048 {
        let max = |stride, padding| Layer::MaxPool { stride, padding };
        stages.push(Stage {
            blocks: vec![
                within("Mixed_7a", &|b| block_d(b, 768))?,
                within("Mixed_7b", &|b| block_e(b, 1280, Layer::AveragePool))?,
                within("Mixed_7c", &|b| block_e(b, 2048, max(1, 1)))?,
            ],
            output: Output::Pool2048,
        });
    }
    Ok(stages)
}

impl Layer {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Layer::Convolution(convolution) => convolution.relu(x),
            Layer::MaxPool { stride, padding } => {
                ops::max_pool2d(x, 3, *stride, Padding::same(*padding))
            }
            Layer::AveragePool => ops::avg_pool2d(x, 3, 1, Padding::same(1)),
            Layer::Fork(layers) => beside(layers.iter().map(|layer| layer.forward(x)).collect()),
        }
    }
}

impl Block {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let branch = |layers: &Vec<Layer>| {
            let mut x = x.clone();
            for layer in layers {
                x = layer.forward(&x)?;
            }
            Ok(x)
        };
        beside(self.0.iter().map(branch).collect())
    }
}

/// Maps of the same size as one.
fn beside(maps: Result<Vec<Tensor>>) -> Result<Tensor> {
    let mut maps = maps?;
    match maps.len() {
        1 => Ok(maps.remove(0)),
        _ => Tensor::cat(&maps, 3),
    }
}

impl Inception {
    /// The network of the weights file at `path`, giving `outputs`, for pictures resized by `preprocess`.
    ///
    /// Errors: the file is of another network; `outputs` holds the logits and the file has no `fc`.
    pub fn open(
        path: &Path,
        outputs: &[Output],
        preprocess: Preprocess,
        device: &Device,
    ) -> error::Result<Self> {
        let weights = tensors::read(path)?;
        let hash = digest::sha256(path)?;
        Self::new(&weights, 1, outputs, preprocess, hash, device)
            .map_err(|e| e.context(format!("{}", path.display())))
    }

    /// As [`Inception::open`], of tensors in memory; every width is divided by `divisor` (1, but for tests).
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
        })
    }

    /// The outputs of prepared pictures [B,299,299,3], a matrix [B,D] each.
    pub fn forward(&self, x: &Tensor) -> Result<Vec<Rows>> {
        let mut known: Vec<(Output, Rows)> = Vec::new();
        let wanted = |output: Output| self.outputs.contains(&output);
        let mut x = x.clone();
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
            "leave out `is` in --metrics, or use pytorch-fid's pt_inception-2015-12-05-6726825d.pth, which has it",
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
    let values = x.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?;
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
        let x = self.preprocess.apply(images)?.to_device(&self.device)?;
        Ok(self.forward(&x)?)
    }
}

#[cfg(test)]
mod tests;
