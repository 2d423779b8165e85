//! Rows of a table by index: y[r] = table[n_r]. table [K,d], indices u32 [R] → [R,d].
//!
//! Gradient: dtable[k] = Σ dy[r] over the rows r with n_r = k, in ascending order.

#[cfg(feature = "cuda")]
pub mod check;
#[cfg(feature = "cuda")]
mod cuda;

use candle_core::{Result, Tensor};

use super::tape::note;

/// Rows of `table` [K,d] by their indices, u32 [R]: [R,d].
pub fn lookup(table: &Tensor, numbers: &Tensor) -> Result<Tensor> {
    let y = table.index_select(numbers, 0)?;
    let numbers = numbers.clone();
    note(&[table], &y, move |inputs, _, dy| {
        Ok(vec![Some(gradient(&inputs[0], &numbers, dy)?)])
    });
    Ok(y)
}

fn gradient(table: &Tensor, numbers: &Tensor, dy: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if cuda::serves(table, dy) {
        return cuda::gradient(table, numbers, dy);
    }
    table.detach().zeros_like()?.index_add(numbers, dy, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Tape;
    use crate::ops::tape::plain;
    use candle_core::{Device, Var};

    #[test]
    fn a_row_taken_twice_gets_both_gradients_and_one_left_alone_none() -> Result<()> {
        let table = Var::from_tensor(&Tensor::new(
            &[[1f32, 2.], [3., 4.], [5., 6.]],
            &Device::Cpu,
        )?)?;
        let numbers = Tensor::new(&[2u32, 0, 2], &Device::Cpu)?;
        let upstream = Tensor::new(&[[1f32, 10.], [2., 20.], [4., 40.]], &Device::Cpu)?;
        let tape = Tape::start();
        let y = lookup(&table, &numbers)?;
        assert_eq!(y.to_vec2::<f32>()?, [[5., 6.], [1., 2.], [5., 6.]]);
        let loss = plain([&y], move |[y]| (y * &upstream)?.sum_all())?;
        let found = tape.backward(loss)?;
        let gradient = found.get(&table).expect("a gradient").to_vec2::<f32>()?;
        assert_eq!(gradient, [[2., 20.], [0., 0.], [5., 50.]]);
        Ok(())
    }
}
