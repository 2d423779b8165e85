//! The discriminator's hinge loss: ½ [ mean(max(0, 1 − real)) + mean(max(0, 1 + fake)) ] from its
//! logits of any shapes, a scalar in f32; and the shares of logits on the right side of zero.
//!
//! Gradients: −½/n to each real logit up to 1, ½/m to each fake one from −1 on, 0 beyond.

#[cfg(feature = "cuda")]
pub mod check;
#[cfg(feature = "cuda")]
mod cuda;

use candle_core::{DType, Result, Tensor};

use super::tape;

/// Real and fake logits may differ in shape.
pub fn hinge_discriminator(real: &Tensor, fake: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if cuda::serves(real, fake) {
        return tape::apply2(real, fake, cuda::Hinge);
    }
    tape::plain([real, fake], |[real, fake]| {
        let (real, fake) = (real.to_dtype(DType::F32)?, fake.to_dtype(DType::F32)?);
        let real = positive(&real.affine(-1.0, 1.0)?)?.mean_all()?;
        let fake = positive(&fake.affine(1.0, 1.0)?)?.mean_all()?;
        (real + fake)? * 0.5
    })
}

/// The shares of real logits above zero and of fake ones below; not differentiable.
pub fn shares(real: &Tensor, fake: &Tensor) -> Result<[Tensor; 2]> {
    let (real, fake) = (real.detach(), fake.detach());
    #[cfg(feature = "cuda")]
    if cuda::serves(&real, &fake) {
        return cuda::shares(&real.contiguous()?, &fake.contiguous()?);
    }
    let share = |right: Tensor| right.to_dtype(DType::F32)?.mean_all();
    Ok([share(real.gt(0f32)?)?, share(fake.lt(0f32)?)?])
}

/// max(0, x) as ½(x + |x|), with the same bits and gradient. candle's `relu` turns NaN into 0,
/// which would look like a perfect loss.
fn positive(x: &Tensor) -> Result<Tensor> {
    (x + x.abs()?)? * 0.5
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Tape;
    use candle_core::{Device, Var};

    #[test]
    fn gradients_stop_at_the_margin() -> Result<()> {
        let t = |v: &[f32]| Tensor::new(v, &Device::Cpu);
        let real = Var::from_tensor(&t(&[0.5, 2.0])?)?;
        let fake = Var::from_tensor(&t(&[-3.0, 0.0, -0.5, 1.0])?)?;
        let tape = Tape::start();
        let loss = hinge_discriminator(&real, &fake)?;
        assert_eq!(loss.to_scalar::<f32>()?, 0.5 * (0.5 / 2.0 + 3.5 / 4.0));
        let found = tape.backward(loss)?;
        let gradient = |var: &Var| found.get(var).expect("a gradient").to_vec1::<f32>();
        assert_eq!(gradient(&real)?, [-0.25, 0.0]);
        assert_eq!(gradient(&fake)?, [0.0, 0.125, 0.125, 0.125]);
        Ok(())
    }

    #[test]
    fn a_share_counts_logits_on_the_right_side() -> Result<()> {
        let t = |v: &[f32]| Tensor::new(v, &Device::Cpu);
        let [real, fake] = shares(&t(&[0.5, -2.0])?, &t(&[-3.0, 0.0, -0.5, 1.0])?)?;
        assert_eq!(real.to_scalar::<f32>()?, 0.5);
        assert_eq!(fake.to_scalar::<f32>()?, 0.5);
        Ok(())
    }
}
