//! Adam for all parameters of a model, with the moments and, optionally, the moving average.
//!
//! Moments and average are keyed by parameter name. Weight decay applies only to tensors of two or
//! more dimensions [ours].

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Tensor, Var};

use super::grads::Gradients;
use super::lr::ema_decay;
use crate::config::TrainConfig;
use crate::error::{Result, hinted};
use crate::ops::optimizer::{AdamStep, Trained, adam_step_all};
use crate::store::Params;

pub(super) const ADAM_EPS: f64 = 1e-8;
/// Prefixes of the names of the two moments, as in PyTorch.
pub const FIRST: &str = "exp_avg.";
pub const SECOND: &str = "exp_avg_sq.";

/// Parameters being trained.
pub struct Optimizer {
    pub params: Params,
    /// The moving average of `params`.
    pub ema: Option<Params>,
    /// Names of parameters that updates leave as they are.
    frozen: BTreeSet<String>,
    first: Params,
    second: Params,
    betas: (f64, f64),
    weight_decay: f64,
    decay: f64,
    /// Number of updates; skipped steps do not count.
    pub updates: u64,
}

impl Optimizer {
    /// Zero moments; the average starts at the parameters.
    pub fn new(params: Params, config: &TrainConfig, with_ema: bool) -> Result<Self> {
        let (first, second) = (params.zeros_like()?, params.zeros_like()?);
        let ema = with_ema.then(|| params.deep_copy()).transpose()?;
        Ok(Self {
            params,
            ema,
            frozen: BTreeSet::new(),
            first,
            second,
            betas: config.betas,
            weight_decay: config.weight_decay,
            decay: config.ema_decay,
            updates: 0,
        })
    }

    /// The same, leaving the parameters as they are for whose names `trains` is false.
    pub fn training(mut self, trains: impl Fn(&str) -> bool) -> Self {
        let names = self.params.iter().map(|(name, _)| name);
        self.frozen = names
            .filter(|name| !trains(name))
            .map(str::to_string)
            .collect();
        self
    }

    /// The parameters that updates change.
    pub fn trained(&self) -> impl Iterator<Item = (&str, &Var)> {
        let frozen = &self.frozen;
        (self.params.iter()).filter(move |(name, _)| !frozen.contains(*name))
    }

    /// One update from `gradients`, multiplied by `scale`.
    pub fn update(&mut self, gradients: &Gradients, lr: f64, scale: f64) -> Result<()> {
        let decay = ema_decay(self.decay, self.updates);
        self.updates += 1;
        let missing = |name: &str| hinted(format!("no gradient for `{name}`"), "");
        let step = AdamStep {
            lr,
            beta1: self.betas.0,
            beta2: self.betas.1,
            eps: ADAM_EPS,
            weight_decay: self.weight_decay,
            step: self.updates,
            grad_scale: scale as f32,
            ema_decay: self.ema.as_ref().map(|_| decay as f32),
        };
        let mut all = Vec::with_capacity(self.params.len());
        for (name, param) in self.trained() {
            let grad = gradients.get(name).ok_or_else(|| missing(name))?;
            let [first, second] = [&self.first, &self.second].map(|p| p.get(name));
            let (Some(m), Some(v)) = (first, second) else {
                return Err(missing(name));
            };
            all.push(Trained {
                param,
                grad,
                m,
                v,
                ema: self.ema.as_ref().and_then(|e| e.get(name)),
                weight_decay: if param.rank() > 1 {
                    self.weight_decay
                } else {
                    0.0
                },
            });
        }
        Ok(adam_step_all(&all, &step)?)
    }

    /// The moving average by name; empty if there is none.
    pub fn average(&self) -> BTreeMap<String, Tensor> {
        self.ema.as_ref().map(Params::tensors).unwrap_or_default()
    }

    /// Sets the average to the parameters.
    pub fn restart_average(&self) -> Result<()> {
        let params = self.params.tensors();
        self.ema
            .as_ref()
            .map_or(Ok(()), |average| average.assign(&params))
    }

    /// The moments of one parameter, for an operation that restarts part of it.
    pub fn moments(&self, name: &str) -> Option<[&Var; 2]> {
        Some([self.first.get(name)?, self.second.get(name)?])
    }

    /// Both moments under PyTorch's names: `exp_avg.NAME`, `exp_avg_sq.NAME`.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let named = |prefix: &'static str, params: &Params| {
            params
                .tensors()
                .into_iter()
                .map(move |(name, tensor)| (format!("{prefix}{name}"), tensor))
        };
        named(FIRST, &self.first)
            .chain(named(SECOND, &self.second))
            .collect()
    }

    /// Sets parameters and average, and takes the moments out of `rest`.
    pub fn restore(
        &mut self,
        model: &BTreeMap<String, Tensor>,
        ema: &BTreeMap<String, Tensor>,
        rest: &mut BTreeMap<String, Tensor>,
        updates: u64,
    ) -> Result<()> {
        self.updates = updates;
        self.params.assign(model)?;
        if let Some(average) = &self.ema {
            average.assign(ema)?;
        }
        for (prefix, params) in [(FIRST, &self.first), (SECOND, &self.second)] {
            let own = params
                .iter()
                .filter_map(|(name, _)| {
                    let tensor = rest.remove(&format!("{prefix}{name}"))?;
                    Some((name.to_string(), tensor))
                })
                .collect();
            params.assign(&own)?;
        }
        Ok(())
    }
}
