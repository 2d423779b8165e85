//! Running averages in place: r ← keep·r + rate·now for a list of tensors in f32, each with factors
//! of its own; without `now`, rate is added to every element. Not differentiable.

#[cfg(feature = "cuda")]
pub mod check;
#[cfg(feature = "cuda")]
mod cuda;

use candle_core::{DType, Result, Tensor, Var};

use super::check as shapes;

/// One running average and what it takes in.
#[derive(Clone, Copy)]
pub struct Running<'a> {
    pub average: &'a Var,
    /// Of the same shape; none for ones.
    pub now: Option<&'a Tensor>,
    pub keep: f64,
    pub rate: f64,
}

/// Updates all of them; on a GPU in one launch. No two may be the same variable.
pub fn update_averages(all: &[Running]) -> Result<()> {
    for one in all {
        shapes::dtype("running_average", "the average", one.average, DType::F32)?;
        if let Some(now) = one.now {
            shapes::dtype("running_average", "the new value", now, DType::F32)?;
            shapes::shape("running_average", "the new value", now, one.average.dims())?;
        }
    }
    #[cfg(feature = "cuda")]
    if all.iter().all(|one| one.average.device().is_cuda()) {
        return cuda::update(all);
    }
    for one in all {
        let average = one.average.as_detached_tensor();
        let now = match one.now {
            Some(now) => now.detach(),
            None => average.ones_like()?,
        };
        one.average
            .set(&((average * one.keep)? + (now * one.rate)?)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn an_average_moves_by_the_rate_and_a_count_by_one() -> Result<()> {
        let average = Var::from_tensor(&Tensor::new(&[2f32, 4.0], &Device::Cpu)?)?;
        let count = Var::from_tensor(&Tensor::new(7f32, &Device::Cpu)?)?;
        let now = Tensor::new(&[4f32, 0.0], &Device::Cpu)?;
        update_averages(&[
            Running {
                average: &average,
                now: Some(&now),
                keep: 0.75,
                rate: 0.25,
            },
            Running {
                average: &count,
                now: None,
                keep: 1.0,
                rate: 1.0,
            },
        ])?;
        assert_eq!(average.to_vec1::<f32>()?, [2.5, 3.0]);
        assert_eq!(count.to_scalar::<f32>()?, 8.0);
        Ok(())
    }
}
