//! Mean squared error over all elements of two maps: mean((x − y)²), a scalar in f32.
//!
//! Gradients: 2·(x − y)/n to x, the negative to y.

#[cfg(feature = "cuda")]
pub mod check;
#[cfg(feature = "cuda")]
mod cuda;

use candle_core::{Result, Tensor};

use super::tape;

/// x and y must have the same shape.
pub fn mean_squared_error(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if cuda::serves(x, y) {
        return tape::apply2(x, y, cuda::MeanSquaredError);
    }
    tape::plain([x, y], |[x, y]| (x - y)?.sqr()?.mean_all())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Tape;
    use candle_core::{Device, Var};

    #[test]
    fn the_gradient_is_twice_the_difference_over_the_count() -> Result<()> {
        let x = Var::from_tensor(&Tensor::new(&[1f32, 2., 3., 8.], &Device::Cpu)?)?;
        let y = Var::from_tensor(&Tensor::new(&[1f32, 0., 4., 4.], &Device::Cpu)?)?;
        let tape = Tape::start();
        let error = mean_squared_error(&x, &y)?;
        assert_eq!(error.to_scalar::<f32>()?, 21.0 / 4.0);
        let found = tape.backward(error)?;
        let gradient = |var: &Var| found.get(var).expect("a gradient").to_vec1::<f32>();
        assert_eq!(gradient(&x)?, [0., 1., -0.5, 2.]);
        assert_eq!(gradient(&y)?, [0., -1., 0.5, -2.]);
        Ok(())
    }
}
