//! Dropout of the generator's MLP branches in training [ours]: an element of a block's branch is 0
//! with probability p, else divided by 1 − p.
//!
//! The draws of example n in block i are the stream (seed, [`Purpose::Dropout`], n, i), numbered in
//! memory order [N,C].

use candle_core::{Result, Tensor};

use crate::ops::tape;
use crate::rng::{Purpose, uniform};

/// What is drawn for a batch.
#[derive(Debug, Clone, Copy)]
pub struct Dropout<'a> {
    /// p
    pub probability: f64,
    pub seed: u64,
    /// The examples' numbers [B].
    pub indices: &'a [u64],
}

impl Dropout<'_> {
    /// Of block `block`'s branch x [B,N,C].
    pub fn apply(&self, x: &Tensor, block: usize) -> Result<Tensor> {
        let (_, n, c) = x.dims3()?;
        let (seed, purpose) = (self.seed, Purpose::Dropout);
        let u = uniform(
            seed,
            purpose,
            self.indices,
            block as u32,
            &[n, c],
            x.device(),
        )?;
        let kept = u.ge(self.probability)?.to_dtype(x.dtype())?;
        let mask = (kept * (1.0 / (1.0 - self.probability)))?;
        tape::plain([x], move |[x]| x * &mask)
    }
}
