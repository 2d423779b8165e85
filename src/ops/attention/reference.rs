//! Attention out of plain candle operations.

use super::RopeTable;
use candle_core::{D, Result, Tensor};

pub(super) fn attention(qkv: &Tensor, heads: usize, rope: Option<&RopeTable>) -> Result<Tensor> {
    let (b, n, packed) = qkv.dims3()?;
    let d = packed / 3 / heads;
    let split = qkv.reshape((b, n, 3, heads, d))?;
    let part = |i: usize| {
        let part = split.narrow(2, i, 1)?.squeeze(2)?; // [B,N,heads,d]
        part.transpose(1, 2)?.contiguous() // [B,heads,N,d]
    };
    let (mut q, mut k, v) = (part(0)?, part(1)?, part(2)?);
    if let Some(table) = rope {
        (q, k) = (rotate(&q, table)?, rotate(&k, table)?);
    }
    let scores = (q.matmul(&k.t()?.contiguous()?)? / (d as f64).sqrt())?;
    let scores = scores.broadcast_sub(&scores.detach().max_keepdim(D::Minus1)?)?;
    let weights = scores.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    let y = weights.matmul(&v)?; // [B,heads,N,d]
    y.transpose(1, 2)?.contiguous()?.reshape((b, n, heads * d))
}

/// x [B,heads,N,d]: the first half turned with the second.
fn rotate(x: &Tensor, table: &RopeTable) -> Result<Tensor> {
    let half = x.dim(3)? / 2;
    let (a, b) = (x.narrow(3, 0, half)?, x.narrow(3, half, half)?);
    let (cos, sin) = (
        table.cos().to_dtype(x.dtype())?,
        table.sin().to_dtype(x.dtype())?,
    );
    Tensor::cat(
        &[
            (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?,
            (a.broadcast_mul(&sin)? + b.broadcast_mul(&cos)?)?,
        ],
        3,
    )
}
