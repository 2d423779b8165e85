use candle_core::{DType, Device, Result, Tensor};

use super::{leaky_relu, reference, relu};
use crate::ops::testing::*;

#[test]
fn values_and_gradients_are_the_oracles() -> Result<()> {
    for shape in [vec![1], vec![3, 5, 7], vec![40_001]] {
        for slope in [0.0, 0.2] {
            let x = normal(1, shape.clone());
            assert_matches(
                &format!("{shape:?}, slope {slope}"),
                |t| leaky_relu(&t[0], slope),
                |t| reference::leaky_relu(&t[0], slope),
                &[x],
                1e-6,
            )?;
        }
    }
    Ok(())
}

#[test]
fn the_gradient_at_zero_is_the_slope() -> Result<()> {
    let x = Tensor::zeros(3, DType::F32, &Device::Cpu)?;
    let upstream = normal(991, 3); // the one that with_gradients draws
    let grads = with_gradients(|t| relu(&t[0]), std::slice::from_ref(&x), DType::F32)?;
    assert_eq!(values(&grads[1]), [0.0, 0.0, 0.0]);
    let grads = with_gradients(|t| leaky_relu(&t[0], 0.5), &[x], DType::F32)?;
    assert_close("at zero", &grads[1], &(upstream * 0.5)?, 0.0);
    Ok(())
}

#[test]
fn nan_stays_nan_and_minus_infinity_becomes_zero() -> Result<()> {
    let x = Tensor::new(&[f32::NAN, f32::NEG_INFINITY, f32::INFINITY], &Device::Cpu)?;
    for y in [relu(&x)?, reference::leaky_relu(&x, 0.0)?] {
        let y = values(&y);
        assert!(y[0].is_nan());
        assert_eq!(y[1..], [0.0, f32::INFINITY.into()]);
    }
    Ok(())
}
