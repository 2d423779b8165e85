//! A golden file: its tensors, metadata and comparisons.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor};
use rdpm::config::Config;
use rdpm::error::Result;
use rdpm::store::{Params, Scope};
use serde::de::DeserializeOwned;

/// The tolerance of every golden test.
const TOLERANCE: f64 = 1e-5;

pub struct Golden {
    name: String,
    tensors: HashMap<String, Tensor>,
    metadata: HashMap<String, String>,
}

impl Golden {
    pub fn open(name: &str) -> Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/data/golden")
            .join(format!("{name}.safetensors"));
        let bytes = std::fs::read(path)?;
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes)?;
        let metadata = header.metadata().clone();
        Ok(Self {
            name: name.to_string(),
            tensors: candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?,
            metadata: metadata.expect("golden files say their settings"),
        })
    }

    pub fn metadata<T: DeserializeOwned>(&self, key: &str) -> Result<T> {
        Ok(serde_json::from_str(&self.metadata[key])?)
    }

    /// The defaults, overridden by the file's metadata.
    pub fn config(&self) -> Result<Config> {
        Config::from_json(&self.metadata["config"])
    }

    /// As stored on disk.
    pub fn get(&self, name: &str) -> Tensor {
        self.tensors[name].clone()
    }

    /// A map or a stack of maps [..,C,H,W] as [..,H,W,C].
    pub fn map(&self, name: &str) -> Result<Tensor> {
        let tensor = &self.tensors[name];
        let rank = tensor.rank();
        let mut order: Vec<usize> = (0..rank).collect();
        order[rank - 3..].rotate_left(1);
        Ok(tensor.permute(order)?.contiguous()?)
    }

    /// Integers.
    pub fn index(&self, name: &str) -> Result<Tensor> {
        Ok(self.tensors[name].to_dtype(DType::U32)?)
    }

    pub fn scalar(&self, name: &str) -> Result<f64> {
        Ok(f64::from(self.tensors[name].to_scalar::<f32>()?))
    }

    /// The tensors with a prefix, without the prefix.
    pub fn under(&self, prefix: &str) -> BTreeMap<String, Tensor> {
        let prefix = format!("{prefix}.");
        let inside = |(name, tensor): (&String, &Tensor)| {
            let name = name.strip_prefix(&prefix)?;
            Some((name.to_string(), tensor.clone()))
        };
        self.tensors.iter().filter_map(inside).collect()
    }

    /// A model with this file's weights as variables; names and shapes must match exactly.
    pub fn build<M>(
        &self,
        make: impl FnOnce(&Scope) -> candle_core::Result<M>,
    ) -> Result<(M, Params)> {
        let scope = Scope::init(0, &Device::Cpu);
        let model = make(&scope)?;
        let params = scope.finish();
        params.assign(&self.under("weights"))?;
        Ok((model, params))
    }

    /// ‖found − expected‖ ≤ 1e-5·‖expected‖, for a `name` that the file stores in memory layout.
    pub fn check(&self, name: &str, found: &Tensor) -> Result<()> {
        self.check_against(name, found, &self.get(name))
    }

    /// Like [`Golden::check`], for a map that the file stores as [..,C,H,W].
    pub fn check_map(&self, name: &str, found: &Tensor) -> Result<()> {
        self.check_against(name, found, &self.map(name)?)
    }

    pub fn check_against(&self, name: &str, found: &Tensor, expected: &Tensor) -> Result<()> {
        assert_eq!(found.dims(), expected.dims(), "{}: {name}", self.name);
        let error = distance(found, expected)? / norm(expected)?;
        self.bar(name, error);
        Ok(())
    }

    pub fn check_scalar(&self, name: &str, found: f64) -> Result<()> {
        let expected = self.scalar(name)?;
        self.bar(name, (found - expected).abs() / expected.abs());
        Ok(())
    }

    pub fn check_codes(&self, name: &str, found: &Tensor) -> Result<()> {
        let expected = self.index(name)?;
        assert_eq!(found.dims(), expected.dims(), "{}: {name}", self.name);
        let (found, expected) = (found.flatten_all()?, expected.flatten_all()?);
        let (found, expected) = (found.to_vec1::<u32>()?, expected.to_vec1::<u32>()?);
        assert_eq!(found, expected, "{}: {name}", self.name);
        Ok(())
    }

    /// Checks every parameter's gradient. For a norm below 0.2 % of the whole, the error is
    /// relative to that: the gradients of attention's biases are remainders of sums that cancel
    /// (the key's exactly), and carry their rounding errors.
    pub fn check_grads(&self, params: &Params, grads: &GradStore) -> Result<()> {
        let expected = self.under("grads");
        assert_eq!(expected.len(), params.len(), "{}: parameters", self.name);
        let norms = expected.values().map(norm).collect::<Result<Vec<_>>>()?;
        let whole = norms.iter().map(|n| n * n).sum::<f64>().sqrt();
        let mut worst = (0.0, "");
        for (name, var) in params.iter() {
            let Some(found) = grads.get(var) else {
                panic!("{}: no gradient reaches {name}", self.name)
            };
            let size = norm(&expected[name])?.max(2e-3 * whole);
            let error = distance(found, &expected[name])? / size;
            if error > worst.0 {
                worst = (error, name);
            }
        }
        self.bar(&format!("gradients, of {}", worst.1), worst.0);
        Ok(())
    }

    fn bar(&self, name: &str, error: f64) {
        println!("{} {name}: {error:.1e}", self.name);
        // A NaN must fail too.
        let passed = error <= TOLERANCE;
        assert!(passed, "{}: {name}: relative error {error:.2e}", self.name);
    }
}

fn norm(x: &Tensor) -> Result<f64> {
    let x = x.to_dtype(DType::F64)?;
    Ok(x.sqr()?.sum_all()?.to_scalar::<f64>()?.sqrt())
}

fn distance(a: &Tensor, b: &Tensor) -> Result<f64> {
    norm(&(a.to_dtype(DType::F64)? - b.to_dtype(DType::F64)?)?)
}
