//! VQGAN's upsampling: nearest ×2, then a 3×3 convolution. [B,H,W,C] → [B,2H,2W,C].
//!
//! The convolution sees each input in two rows and two columns. If its weight no longer changes,
//! the kernel offsets that see the same input are added in advance. Each of the four phases (2i+a,
//! 2j+b) is then a 2×2 convolution of the small map: 16 multiply-adds per input instead of 36.

use std::sync::OnceLock;

use candle_core::{Result, Tensor};

use super::layers::Conv2d;
use crate::ops::{self, Packed, Padding};
use crate::store::Scope;

pub struct Upsample {
    conv: Conv2d,
    /// The phases (0,0), (0,1), (1,0), (1,1) of a weight that no longer changes.
    phases: Option<OnceLock<[Conv2d; 4]>>,
}

impl Upsample {
    pub fn new(channels: usize, scope: &Scope) -> Result<Self> {
        let conv = Conv2d::same(channels, channels, 3, &scope.push("conv"))?;
        Ok(Self {
            phases: conv.packed.as_ref().map(|_| OnceLock::new()),
            conv,
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.phases {
            Some(phases) if x.device().is_cpu() && !x.track_op() => self.by_phases(x, phases),
            _ => {
                let Conv2d { weight, bias, .. } = &self.conv;
                ops::upsampled_conv2d(x, weight, bias.as_ref(), self.conv.packed.as_ref())
            }
        }
    }

    fn by_phases(&self, x: &Tensor, phases: &OnceLock<[Conv2d; 4]>) -> Result<Tensor> {
        let [p00, p01, p10, p11] = match phases.get() {
            Some(phases) => phases,
            None => {
                let made = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(a, b)| self.phase(a, b));
                let [p00, p01, p10, p11] = made;
                let made = [p00?, p01?, p10?, p11?];
                phases.get_or_init(|| made)
            }
        };
        let (b, h, w, c) = x.dims4()?;
        // Interleaves columns 2j and 2j+1, then rows 2i and 2i+1.
        let row = |even: &Conv2d, odd: &Conv2d| {
            let columns = Tensor::cat(&[even.forward(x)?, odd.forward(x)?], 3)?; // [B,H,W,2C]
            columns.reshape((b, h, 2 * w * c))
        };
        Tensor::cat(&[row(p00, p01)?, row(p10, p11)?], 2)?.reshape((b, 2 * h, 2 * w, c))
    }

    /// Output 2i sees inputs i−1, i, i through its three kernel offsets, output 2i+1 sees i, i,
    /// i+1.
    fn phase(&self, a: usize, b: usize) -> Result<Conv2d> {
        let along = |w: &Tensor, dim: usize, odd: usize| -> Result<Tensor> {
            let tap = |i| w.narrow(dim, i, 1);
            let (first, second) = match odd {
                0 => (tap(0)?, (tap(1)? + tap(2)?)?),
                _ => ((tap(0)? + tap(1)?)?, tap(2)?),
            };
            Tensor::cat(&[first, second], dim)
        };
        let weight = along(&along(&self.conv.weight, 2, a)?, 3, b)?;
        Ok(Conv2d {
            weight: weight.contiguous()?,
            bias: self.conv.bias.clone(),
            stride: 1,
            padding: Padding::new(1 - a, a, 1 - b, b),
            packed: Some(Packed::default()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, normal};
    use candle_core::Device;
    use std::collections::BTreeMap;

    #[test]
    fn the_phases_are_the_convolution_of_the_doubled_map() -> Result<()> {
        let drawn = |seed, shape: &[usize]| -> Result<Tensor> {
            normal(seed, Purpose::Init, &[0], 0, shape, &Device::Cpu)?.squeeze(0)
        };
        let tensors = BTreeMap::from([
            ("conv.weight".to_string(), drawn(1, &[6, 6, 3, 3])?),
            ("conv.bias".to_string(), drawn(2, &[6])?),
        ]);
        let x = drawn(3, &[2, 5, 3, 6])?;
        let scope = Scope::load(&tensors, &Device::Cpu);
        let plain = Upsample::new(6, &scope)?.forward(&x)?;
        let frozen = Upsample::new(6, &scope.frozen())?;
        assert!(frozen.phases.is_some());
        let found = frozen.forward(&x)?;
        assert_eq!(found.dims(), [2, 10, 6, 6]);
        let most = (&found - &plain)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(most < 2e-5, "{most}");
        Ok(())
    }
}
