//! Images as a frozen network expects them: y_c = (x_c − shift_c)/scale_c, channel by channel, then
//! rounded to the type that it computes in. x [..,C] f32, shift and scale [C] → [..,C]. Gradient:
//! dx_c = dy_c/scale_c.

#[cfg(feature = "cuda")]
pub mod check;
#[cfg(feature = "cuda")]
mod cuda;

use candle_core::{DType, Result, Tensor};

use super::{arrange, check as shapes, tape};

/// x [..,C] f32; shift, scale [C] f32, which get no gradient; the result is `dtype`.
pub fn standardize(x: &Tensor, shift: &Tensor, scale: &Tensor, dtype: DType) -> Result<Tensor> {
    let c = shapes::last_dim("standardize", "x", x)?;
    shapes::shape("standardize", "shift", shift, &[c])?;
    shapes::shape("standardize", "scale", scale, &[c])?;
    #[cfg(feature = "cuda")]
    if cuda::serves(x, shift, scale, dtype) {
        return tape::apply1(x, cuda::Standardize::new(shift, scale, dtype));
    }
    let (shift, scale) = (shift.detach(), scale.detach());
    let y = tape::plain([x], move |[x]| {
        x.broadcast_sub(&shift)?.broadcast_div(&scale)
    })?;
    arrange::cast(&y, dtype)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Tape;
    use candle_core::{Device, Var};

    #[test]
    fn each_channel_has_its_own_shift_and_scale() -> Result<()> {
        let t = |v: &[f32]| Tensor::new(v, &Device::Cpu);
        let x = Var::from_tensor(&t(&[1., 2., 5., 3.])?.reshape((2, 2))?)?;
        let (shift, scale) = (t(&[1., 2.])?, t(&[2., 4.])?);
        let tape = Tape::start();
        let y = standardize(&x, &shift, &scale, DType::F32)?;
        assert_eq!(y.to_vec2::<f32>()?, [[0., 0.], [2., 0.25]]);
        let sum = tape::plain([&y], |[y]| y.sum_all())?;
        let found = tape.backward(sum)?;
        let gradient = found.get(&x).expect("a gradient").to_vec2::<f32>()?;
        assert_eq!(gradient, [[0.5, 0.25], [0.5, 0.25]]);
        Ok(())
    }
}
