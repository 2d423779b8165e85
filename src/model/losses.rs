//! The tokenizer's losses except L_quant and LPIPS: squared error, hinge, adaptive weight; and
//! PSNR.

use candle_core::{DType, Result, Tensor};

pub use crate::ops::hinge::{hinge_discriminator, shares};
pub use crate::ops::mean_squared_error;

/// −mean(fake), in f32: the decoder's loss for images that the discriminator classifies as fake.
/// Its gradient is [`hinge_generator_gradient`].
pub fn hinge_generator(fake: &Tensor) -> Result<Tensor> {
    fake.to_dtype(DType::F32)?.mean_all()?.neg()
}

/// −1/n for each of n logits.
pub fn hinge_generator_gradient(fake: &Tensor) -> Result<Tensor> {
    let slope = -1.0 / fake.elem_count() as f64;
    Tensor::full(slope as f32, fake.shape(), fake.device())?.to_dtype(fake.dtype())
}

/// VQGAN's λ = ‖∂L_rec/∂W‖ / (‖∂L_adv/∂W‖ + 1e-4), at most `most`, from the gradient norms at the
/// decoder's last weight: scalars.
pub fn adaptive_weight(reconstruction: &Tensor, adversarial: &Tensor, most: f64) -> Result<Tensor> {
    (reconstruction / (adversarial + 1e-4)?)?.clamp(0f64, most)
}

/// Peak signal-to-noise ratio in dB of images in [-1,1], whose peak-to-peak range is 2.
pub fn psnr(mean_squared_error: f64) -> f64 {
    10.0 * (4.0 / mean_squared_error).log10()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn hinge_is_zero_beyond_the_margin_and_linear_within() -> Result<()> {
        let t = |v: &[f32]| Tensor::new(v, &Device::Cpu);
        let loss = |r: &[f32], f: &[f32]| hinge_discriminator(&t(r)?, &t(f)?)?.to_scalar::<f32>();
        assert_eq!(loss(&[1.0, 7.0], &[-1.0, -2.0])?, 0.0);
        assert_eq!(loss(&[0.5, 1.0], &[-1.0, 1.0])?, 0.5 * (0.25 + 1.0));
        assert!(loss(&[f32::NAN, 7.0], &[-1.0])?.is_nan());
        assert!(loss(&[1.0], &[f32::NAN])?.is_nan());
        let fake = t(&[1.0, 2.0])?;
        assert_eq!(hinge_generator(&fake)?.to_scalar::<f32>()?, -1.5);
        let gradient = hinge_generator_gradient(&fake)?;
        assert_eq!(gradient.to_vec1::<f32>()?, [-0.5, -0.5]);
        Ok(())
    }

    #[test]
    fn the_adaptive_weight_is_bounded_where_the_adversarial_gradient_vanishes() -> Result<()> {
        let weight = |a: f64, b: f64, most: f64| {
            let [a, b] = [a, b].map(|x| Tensor::new(x, &Device::Cpu));
            adaptive_weight(&a?, &b?, most)?.to_scalar::<f64>()
        };
        assert_eq!(weight(2.0, 0.0, 1e4)?, 1e4);
        assert_eq!(weight(2.0, 0.0, 5.0)?, 5.0);
        assert!((weight(3.0, 1.5, 5.0)? - 2.0).abs() < 1e-3);
        Ok(())
    }

    #[test]
    fn psnr_of_a_uniform_error_of_one_grey_level_is_48_decibel() {
        assert!((psnr((2.0f64 / 255.0).powi(2)) - 48.13).abs() < 0.01);
    }
}
