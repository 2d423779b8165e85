//! LPIPS (Zhang et al. 2018): the distance of two images in VGG16's features. Images [B,H,W,3] in
//! [-1,1] → a scalar.
//!
//! Σ over five feature layers of the mean over positions of Σ_c w_c (â_c − b̂_c)², â = a/(‖a‖ +
//! 1e-10) over C. All weights are frozen: their gradients are never computed.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor};

use crate::ops::{self, Packed, Padding};
use crate::store::{Init, Scope};

/// VGG16's widths at the five resolutions.
pub const WIDTHS: [usize; 5] = [64, 128, 256, 512, 512];

/// torchvision's indices of the convolutions in `features`, by resolution.
const CONVOLUTIONS: [&[usize]; 5] = [
    &[0, 2],
    &[5, 7],
    &[10, 12, 14],
    &[17, 19, 21],
    &[24, 26, 28],
];

/// A convolution's weight and bias, and the weight's copies.
type Frozen = (Tensor, Tensor, Packed);

/// VGG16's convolutions; the features are taken after the last ReLU of each resolution.
struct Vgg16 {
    stages: Vec<Vec<Frozen>>,
}

impl Vgg16 {
    fn new(widths: &[usize; 5], scope: &Scope) -> Result<Self> {
        let (mut stages, mut input) = (Vec::new(), 3);
        for (numbers, &width) in CONVOLUTIONS.iter().zip(widths) {
            let mut stage = Vec::new();
            for number in *numbers {
                let scope = scope.push("features").push(number);
                stage.push((
                    frozen(&scope, "weight", &[width, input, 3, 3])?,
                    frozen(&scope, "bias", &[width])?,
                    Packed::default(),
                ));
                input = width;
            }
            stages.push(stage);
        }
        Ok(Self { stages })
    }

    /// Five feature maps [B,H/2ⁱ,W/2ⁱ,C_i].
    fn forward(&self, images: &Tensor) -> Result<Vec<Tensor>> {
        let mut x = images.clone();
        let mut taps = Vec::new();
        for (i, stage) in self.stages.iter().enumerate() {
            if i > 0 {
                x = ops::max_pool2d(&x, 2, 2, Padding::same(0))?;
            }
            for (weight, bias, packed) in stage {
                let (bias, packed) = (Some(bias), Some(packed));
                x = ops::conv2d_relu(&x, weight, bias, 1, Padding::same(1), 0.0, packed)?;
            }
            taps.push(x.clone());
        }
        Ok(taps)
    }
}

pub struct Lpips {
    net: Vgg16,
    /// w of each feature layer, [C].
    heads: Vec<Tensor>,
    shift: Tensor,
    scale: Tensor,
    /// The dtype of the network's activations.
    compute: DType,
}

impl Lpips {
    /// Index and weight shape [O,I,3,3] of each convolution in VGG16's `features`.
    pub fn convolutions(widths: &[usize; 5]) -> Vec<(usize, [usize; 4])> {
        let mut input = 3;
        let stages = CONVOLUTIONS.iter().zip(widths);
        stages
            .flat_map(|(numbers, &width)| numbers.iter().map(move |&number| (number, width)))
            .map(|(number, width)| {
                let shape = [width, std::mem::replace(&mut input, width), 3, 3];
                (number, shape)
            })
            .collect()
    }

    /// From torchvision's `features.N.weight|bias` and the heads' `linK.model.1.weight` [1,C,1,1],
    /// of any float dtype.
    ///
    /// Errors: a tensor is missing or has another shape than `widths` ([`WIDTHS`] except in tests)
    /// requires.
    pub fn new(
        widths: &[usize; 5],
        vgg: &BTreeMap<String, Tensor>,
        heads: &BTreeMap<String, Tensor>,
        device: &Device,
    ) -> Result<Self> {
        let lin = Scope::load(heads, device);
        let head = |(k, &c): (usize, &usize)| {
            let scope = lin.push(format!("lin{k}")).push("model").push(1);
            frozen(&scope, "weight", &[1, c, 1, 1])?.flatten_all()
        };
        Ok(Self {
            net: Vgg16::new(widths, &Scope::load(vgg, device))?,
            heads: widths.iter().enumerate().map(head).collect::<Result<_>>()?,
            shift: Tensor::new(&[-0.030f32, -0.088, -0.188], device)?,
            scale: Tensor::new(&[0.458f32, 0.448, 0.450], device)?,
            compute: DType::F32,
        })
    }

    /// The same with activations of `compute`, f32 or on a GPU bf16; weights and images stay f32.
    pub fn computing(self, compute: DType) -> Self {
        Self { compute, ..self }
    }

    /// The mean distance of x and y, differentiable in both.
    pub fn distance(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        let (fx, fy) = (self.features(x)?, self.features(y)?);
        let layer = |i: usize| ops::feature_distance(&fx[i], &fy[i], &self.heads[i]);
        (1..fx.len()).try_fold(layer(0)?, |total, i| ops::add(&total, &layer(i)?))
    }

    /// The distance of each image of x from the one of y, [B,H,W,3] each: B values.
    pub fn distances(&self, x: &Tensor, y: &Tensor) -> Result<Vec<f32>> {
        let (fx, fy) = (self.features(x)?, self.features(y)?);
        let one = |image: usize| {
            let layer = |i: usize| {
                let [a, b] = [&fx[i], &fy[i]].map(|f| f.narrow(0, image, 1));
                ops::feature_distance(&a?, &b?, &self.heads[i])
            };
            (1..fx.len()).try_fold(layer(0)?, |total, i| ops::add(&total, &layer(i)?))
        };
        let all = (0..x.dim(0)?).map(one).collect::<Result<Vec<_>>>()?;
        Tensor::stack(&all, 0)?.to_vec1()
    }

    fn features(&self, images: &Tensor) -> Result<Vec<Tensor>> {
        let x = ops::standardize(images, &self.shift, &self.scale, self.compute)?;
        self.net.forward(&x)
    }
}

fn frozen(scope: &Scope, name: &str, shape: &[usize]) -> Result<Tensor> {
    // Given tensors are never drawn, so the initial value is irrelevant.
    let tensor = scope.get(name, shape, Init::Zeros)?;
    tensor.to_dtype(DType::F32)
}
