//! Finds values that are not finite. NaN or infinity must end in an error that names the image, and
//! never in a black image, a code or a plausible metric.

use candle_core::{DType, Device, Result, Tensor};

/// The first of the B rows of `x` [B,…] that holds NaN or infinity.
pub fn first_bad_row(x: &Tensor) -> Result<Option<usize>> {
    if x.dtype().is_int() {
        return Ok(None);
    }
    let values = x
        .to_device(&Device::Cpu)?
        .to_dtype(DType::F32)?
        .flatten_all()?
        .to_vec1::<f32>()?;
    let row = values.len() / x.dims().first().copied().unwrap_or(1).max(1);
    let bad = values.iter().position(|value| !value.is_finite());
    Ok(bad.map(|at| at / row.max(1)))
}

/// Whether `x` holds neither NaN nor infinity.
pub fn is_finite(x: &Tensor) -> Result<bool> {
    Ok(first_bad_row(x)?.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_row_with_a_bad_value_is_found_in_every_type() -> Result<()> {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let x = Tensor::new(&[[[0f32, 1.0]], [[2.0, bad]], [[bad, 3.0]]], &Device::Cpu)?;
            for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
                assert_eq!(first_bad_row(&x.to_dtype(dtype)?)?, Some(1));
            }
        }
        assert!(is_finite(&Tensor::new(&[u32::MAX], &Device::Cpu)?)?);
        assert!(is_finite(&Tensor::zeros(
            (0, 3),
            DType::F32,
            &Device::Cpu
        )?)?);
        assert!(!is_finite(&Tensor::new(f32::NAN, &Device::Cpu)?)?);
        Ok(())
    }
}
