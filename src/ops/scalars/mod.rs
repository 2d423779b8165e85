//! Scalars in f32 and f64, from wherever they lie on a device, to the host: one launch, one copy.

#[cfg(feature = "cuda")]
pub mod check;
#[cfg(feature = "cuda")]
mod cuda;

use candle_core::{DType, Result, Tensor};

/// The values of `scalars`, all on one device; waits for them.
pub fn read_scalars(scalars: &[Tensor]) -> Result<Vec<f64>> {
    #[cfg(feature = "cuda")]
    if cuda::serves(scalars) {
        return cuda::gathered(scalars)?.to_vec1();
    }
    let wide = |scalar: &Tensor| scalar.to_dtype(DType::F64)?.reshape(1);
    let wide = scalars.iter().map(wide).collect::<Result<Vec<_>>>()?;
    match wide.is_empty() {
        true => Ok(Vec::new()),
        false => Tensor::cat(&wide, 0)?.to_vec1(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn scalars_of_both_types_come_in_order() -> Result<()> {
        assert!(read_scalars(&[])?.is_empty());
        let scalars = [
            Tensor::new(0.5f32, &Device::Cpu)?,
            Tensor::new(1e-300f64, &Device::Cpu)?,
            Tensor::new(&[1f32, 2.0], &Device::Cpu)?.get(1)?,
        ];
        assert_eq!(read_scalars(&scalars)?, [0.5, 1e-300, 2.0]);
        Ok(())
    }
}
