//! Trained weights in the order in which a GPU's kernels read them, packed once for all passes over
//! a micro-batch.

use std::marker::PhantomData;

use candle_core::{Result, Var};

#[cfg(feature = "cuda")]
use super::hopper_weights::Held;

/// While it exists, the convolutions of its thread take copies of these weights that were made at
/// its beginning. Nobody may change the variables meanwhile: it borrows them, which keeps an update
/// by `&mut` out, but not a `Var::set`.
pub struct HeldWeights<'a> {
    #[cfg(feature = "cuda")]
    _held: Option<Held>,
    _weights: PhantomData<(&'a Var, *const ())>,
}

impl<'a> HeldWeights<'a> {
    /// Packs the convolutions' weights among `weights` on a Hopper GPU; elsewhere there is nothing
    /// to hold.
    ///
    /// Errors: this thread already holds weights.
    pub fn new(weights: impl IntoIterator<Item = &'a Var>) -> Result<Self> {
        #[cfg(feature = "cuda")]
        let held = {
            let weights: Vec<_> = weights.into_iter().map(|var| var.as_tensor()).collect();
            match weights.first().map(|weight| weight.device()) {
                Some(candle_core::Device::Cuda(device)) => {
                    let gpu = crate::ops::cuda::Gpu::of(device)?;
                    gpu.is_hopper()
                        .then(|| Held::new(&gpu, &weights))
                        .transpose()?
                }
                _ => None,
            }
        };
        #[cfg(not(feature = "cuda"))]
        drop(weights);
        Ok(Self {
            #[cfg(feature = "cuda")]
            _held: held,
            _weights: PhantomData,
        })
    }
}
