//! Parameters: an ordered map from dotted name to variable, and the scope through which a module
//! creates or loads its parameters (candle: VarBuilder).
//!
//! Names and shapes are those of PyTorch's `state_dict`, in memory and on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Shape, Tensor, Var};

use crate::error::{Result, hinted};
use crate::ops::Packed;
use crate::rng::{Purpose, Stream};

/// How a new parameter is initialised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    Zeros,
    Ones,
    Constant(f64),
    Normal {
        mean: f64,
        std: f64,
    },
    /// Uniform in ±bound.
    Uniform {
        bound: f64,
    },
    /// Uniform in ±√(6 / (fan_in + fan_out)) for a matrix [out, in].
    XavierUniform,
}

/// All parameters of a model, ordered by name.
#[derive(Debug, Clone, Default)]
pub struct Params(BTreeMap<String, Var>);

impl Params {
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.0.iter().map(|(name, var)| (name.as_str(), var))
    }

    pub fn get(&self, name: &str) -> Option<&Var> {
        self.0.get(name)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of scalar parameters.
    pub fn elements(&self) -> usize {
        self.0.values().map(|v| v.elem_count()).sum()
    }

    /// The parameters as plain tensors that share their storage: later updates are visible in them.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        self.iter()
            .map(|(name, var)| (name.to_string(), var.as_detached_tensor()))
            .collect()
    }

    /// Independent variables with the same names and values.
    pub fn deep_copy(&self) -> candle_core::Result<Self> {
        self.iter()
            .map(|(name, var)| {
                Ok((
                    name.to_string(),
                    Var::from_tensor(&var.as_detached_tensor().copy()?)?,
                ))
            })
            .collect::<candle_core::Result<_>>()
            .map(Self)
    }

    /// Variables of zeros with the same names and shapes, for new moments.
    pub fn zeros_like(&self) -> candle_core::Result<Self> {
        self.iter()
            .map(|(name, var)| {
                Ok((
                    name.to_string(),
                    Var::zeros(var.shape(), DType::F32, var.device())?,
                ))
            })
            .collect::<candle_core::Result<_>>()
            .map(Self)
    }

    /// Sets every parameter from `tensors`; names and shapes must match exactly.
    pub fn assign(&self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        let missing: Vec<&str> = self
            .iter()
            .map(|(name, _)| name)
            .filter(|name| !tensors.contains_key(*name))
            .collect();
        let unexpected: Vec<&str> = tensors
            .keys()
            .map(String::as_str)
            .filter(|name| self.get(name).is_none())
            .collect();
        if !missing.is_empty() || !unexpected.is_empty() {
            return Err(hinted(
                format!(
                    "the weights are not this model's: missing {missing:?}, unexpected {unexpected:?}"
                ),
                "the configuration must be the one the weights were trained with",
            ));
        }
        for (name, var) in self.iter() {
            let tensor = &tensors[name];
            check_shape(name, tensor.shape(), var.shape())?;
            var.set(&tensor.to_device(var.device())?.to_dtype(var.dtype())?)?;
        }
        Ok(())
    }
}

fn check_shape(name: &str, found: &Shape, expected: &Shape) -> candle_core::Result<()> {
    if found != expected {
        candle_core::bail!("parameter `{name}`: expected shape {expected:?}, found {found:?}");
    }
    Ok(())
}

enum Origin {
    /// New variables, drawn by seed and name.
    Fresh {
        seed: u64,
        made: BTreeMap<String, Var>,
    },
    /// Given tensors; `used` records which were requested.
    Given {
        tensors: BTreeMap<String, Tensor>,
        used: BTreeSet<String>,
    },
    /// Nothing is allocated; shapes are recorded.
    Planned { shapes: BTreeMap<String, Shape> },
}

/// The source of a module's parameters, with the module's dotted prefix.
#[derive(Clone)]
pub struct Scope {
    prefix: String,
    device: Device,
    frozen: bool,
    winograd: bool,
    origin: Arc<Mutex<Origin>>,
}

impl Scope {
    /// New parameters, tracked by autograd. A parameter's value depends only on `seed` and its
    /// name.
    pub fn init(seed: u64, device: &Device) -> Self {
        Self::new(
            Origin::Fresh {
                seed,
                made: BTreeMap::new(),
            },
            device,
        )
    }

    /// Given tensors, not tracked; they keep sharing their storage with the caller's.
    pub fn load(tensors: &BTreeMap<String, Tensor>, device: &Device) -> Self {
        Self::new(
            Origin::Given {
                tensors: tensors.clone(),
                used: BTreeSet::new(),
            },
            device,
        )
    }

    /// No parameters: a model built from it only reports, through [`Scope::shapes`], what it would
    /// hold, at any size.
    pub fn plan() -> Self {
        let shapes = BTreeMap::new();
        Self::new(Origin::Planned { shapes }, &Device::Cpu)
    }

    fn new(origin: Origin, device: &Device) -> Self {
        Self {
            prefix: String::new(),
            device: device.clone(),
            frozen: false,
            winograd: false,
            origin: Arc::new(Mutex::new(origin)),
        }
    }

    /// For given tensors that no longer change: layers may keep copies in the order in which they
    /// are read.
    pub fn frozen(self) -> Self {
        Self {
            frozen: true,
            ..self
        }
    }

    /// For a network from whose results nothing is chosen: its frozen 3×3 convolutions may be
    /// computed by Winograd's algorithm on a CPU, whose rounding differs.
    pub fn with_winograd(self) -> Self {
        Self {
            winograd: true,
            ..self
        }
    }

    /// The container for a layer's weight in reading order; none if the weight may still change.
    pub fn packed(&self) -> Option<Packed> {
        let make = match self.winograd {
            true => Packed::for_winograd,
            false => Packed::default,
        };
        self.frozen.then(make)
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The scope of the sub-module `name`.
    pub fn push(&self, name: impl Display) -> Self {
        Self {
            prefix: self.name(name),
            ..self.clone()
        }
    }

    fn name(&self, name: impl Display) -> String {
        if self.prefix.is_empty() {
            name.to_string()
        } else {
            format!("{}.{name}", self.prefix)
        }
    }

    /// The parameter `name` of this module with the given shape.
    ///
    /// Errors: a given tensor is missing or has another shape (named in full).
    pub fn get(
        &self,
        name: &str,
        shape: impl Into<Shape>,
        init: Init,
    ) -> candle_core::Result<Tensor> {
        let (full, shape) = (self.name(name), shape.into());
        match &mut *self.lock() {
            Origin::Fresh { seed, made } => {
                let var = Var::from_tensor(&draw(*seed, &full, &shape, init, &self.device)?)?;
                let tensor = var.as_tensor().clone();
                if made.insert(full.clone(), var).is_some() {
                    candle_core::bail!("parameter `{full}` was made twice");
                }
                Ok(tensor)
            }
            Origin::Given { tensors, used } => {
                let Some(tensor) = tensors.get(&full) else {
                    candle_core::bail!("parameter `{full}` {shape:?} is missing from the weights");
                };
                check_shape(&full, tensor.shape(), &shape)?;
                let tensor = tensor.to_device(&self.device)?;
                used.insert(full);
                Ok(tensor)
            }
            Origin::Planned { shapes } => {
                shapes.insert(full, shape.clone());
                // One zero, broadcast to the shape.
                Tensor::zeros((), DType::F32, &self.device)?.broadcast_as(shape)
            }
        }
    }

    /// The new parameters created so far.
    pub fn finish(self) -> Params {
        match &mut *self.lock() {
            Origin::Fresh { made, .. } => Params(std::mem::take(made)),
            Origin::Given { .. } | Origin::Planned { .. } => Params::default(),
        }
    }

    /// The shapes of what a planned model would hold, by name; empty for any other scope.
    pub fn shapes(&self) -> BTreeMap<String, Shape> {
        match &*self.lock() {
            Origin::Planned { shapes } => shapes.clone(),
            Origin::Fresh { .. } | Origin::Given { .. } => BTreeMap::new(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Origin> {
        self.origin
            .lock()
            .expect("no thread panics while it holds this lock")
    }

    /// Names of given tensors that no module requested.
    pub fn unused(&self) -> Vec<String> {
        match &*self.lock() {
            Origin::Fresh { .. } | Origin::Planned { .. } => Vec::new(),
            Origin::Given { tensors, used } => tensors
                .keys()
                .filter(|name| !used.contains(*name))
                .cloned()
                .collect(),
        }
    }
}

fn draw(
    seed: u64,
    name: &str,
    shape: &Shape,
    init: Init,
    device: &Device,
) -> candle_core::Result<Tensor> {
    let stream = Stream::new(seed, Purpose::Init, name_hash(name), 0);
    let mut values = vec![0f32; shape.elem_count()];
    match init {
        Init::Zeros => {}
        Init::Ones => values.fill(1.0),
        Init::Constant(c) => values.fill(c as f32),
        Init::Normal { mean, std } => {
            stream.fill_normal(&mut values);
            values
                .iter_mut()
                .for_each(|x| *x = *x * std as f32 + mean as f32);
        }
        Init::Uniform { bound } => {
            stream.fill_uniform(&mut values);
            values
                .iter_mut()
                .for_each(|x| *x = (2.0 * *x - 1.0) * bound as f32);
        }
        Init::XavierUniform => {
            let (fan_out, fan_in) = shape.dims2()?;
            let bound = (6.0 / (fan_in + fan_out) as f64).sqrt();
            return draw(seed, name, shape, Init::Uniform { bound }, device);
        }
    }
    Tensor::from_vec(values, shape, device)
}

/// FNV-1a: any fixed hash would do, because it only distinguishes names.
fn name_hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loaded_model_sees_later_updates() -> Result<()> {
        let scope = Scope::init(1, &Device::Cpu);
        scope.push("a").get(
            "weight",
            (2, 3),
            Init::Normal {
                mean: 0.0,
                std: 1.0,
            },
        )?;
        let params = scope.finish();
        let view = Scope::load(&params.tensors(), &Device::Cpu).push("a").get(
            "weight",
            (2, 3),
            Init::Zeros,
        )?;
        params
            .get("a.weight")
            .expect("just made")
            .set(&Tensor::ones((2, 3), DType::F32, &Device::Cpu)?)?;
        assert_eq!(view.to_vec2::<f32>()?, vec![vec![1.0; 3]; 2]);
        Ok(())
    }

    #[test]
    fn wrong_names_and_shapes_are_named() -> Result<()> {
        let tensors = BTreeMap::from([(
            "a.weight".to_string(),
            Tensor::ones((2, 3), DType::F32, &Device::Cpu)?,
        )]);
        let scope = Scope::load(&tensors, &Device::Cpu);
        let missing = scope.get("b", 3, Init::Zeros).unwrap_err().to_string();
        assert!(missing.contains("`b`"), "{missing}");
        let shape = scope
            .get("a.weight", (3, 2), Init::Zeros)
            .unwrap_err()
            .to_string();
        assert!(
            shape.contains("[3, 2]") && shape.contains("[2, 3]"),
            "{shape}"
        );
        assert_eq!(scope.unused(), ["a.weight"]);
        Ok(())
    }
}
