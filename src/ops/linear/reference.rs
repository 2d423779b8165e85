//! The reference: candle's matmul with contiguous operands (candle's matmul of strided operands is
//! wrong).

use candle_core::{Result, Tensor};

pub(in crate::ops) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (o, i) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    shape.pop();
    shape.push(o);
    let rows = x.contiguous()?.reshape(((), i))?;
    let y = rows.matmul(&weight.t()?.contiguous()?)?;
    match bias {
        Some(bias) => y.broadcast_add(bias)?.reshape(shape),
        None => y.reshape(shape),
    }
}
