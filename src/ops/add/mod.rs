//! y = a + b of the same shape, in one pass. Gradient: dy to both. Also a + weight·b without one.

#[cfg(feature = "cuda")]
pub mod check;
#[cfg(feature = "cuda")]
mod cuda;

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor};

use super::{blocks, check as shapes, slices, tape};

/// a + b, for equal shapes.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.shape() == b.shape() && a.dtype() == b.dtype() && slices::have_kernels(&[a, b]) {
        return tape::apply2(a, b, Add);
    }
    tape::plain([a, b], |[a, b]| a + b)
}

/// a + weight·b for equal shapes in f32 and a scalar weight in f64 on their device, rounded to f32
/// first; not differentiable.
pub fn add_scaled(a: &Tensor, b: &Tensor, weight: &Tensor) -> Result<Tensor> {
    shapes::shape("add_scaled", "b", b, a.dims())?;
    shapes::shape("add_scaled", "the weight", weight, &[])?;
    for (name, tensor, dtype) in [
        ("a", a, DType::F32),
        ("b", b, DType::F32),
        ("the weight", weight, DType::F64),
    ] {
        shapes::dtype("add_scaled", name, tensor, dtype)?;
    }
    let [a, b, weight] = [a, b, weight].map(Tensor::detach);
    #[cfg(feature = "cuda")]
    if a.device().is_cuda() {
        return cuda::add_scaled(&a, &b, &weight);
    }
    a + b.broadcast_mul(&weight.to_dtype(DType::F32)?)?
}

struct Add;

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (a, b) = (slices::of(a, a_layout)?, slices::of(b, b_layout)?);
        let y = blocks::each_pair(
            a,
            b,
            #[inline(always)]
            |a, b| a + b,
        );
        Ok((CpuStorage::F32(y), a_layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        a: &candle_core::CudaStorage,
        a_layout: &Layout,
        b: &candle_core::CudaStorage,
        b_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        Ok((
            cuda::forward((a, a_layout), (b, b_layout))?,
            a_layout.shape().clone(),
        ))
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(dy.clone()), Some(dy.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_matches, normal};

    #[test]
    fn values_and_gradients_are_candles() -> Result<()> {
        for shape in [vec![1], vec![3, 5, 7], vec![40_001]] {
            let (a, b) = (normal(1, shape.clone()), normal(2, shape.clone()));
            assert_matches(
                &format!("{shape:?}"),
                |t| add(&t[0], &t[1]),
                |t| &t[0] + &t[1],
                &[a, b],
                1e-7,
            )?;
        }
        Ok(())
    }

    #[test]
    fn a_scaled_map_is_added() -> Result<()> {
        let t = |v: &[f32]| Tensor::new(v, &candle_core::Device::Cpu);
        let weight = Tensor::new(0.25f64, &candle_core::Device::Cpu)?;
        let sum = add_scaled(&t(&[1., 2., 3.])?, &t(&[4., -8., 0.])?, &weight)?;
        assert_eq!(sum.to_vec1::<f32>()?, [2., 0., 3.]);
        assert!(add_scaled(&t(&[1.])?, &t(&[1., 2.])?, &weight).is_err());
        Ok(())
    }
}
