//! Attention's kernels alone, each range of lengths, Hopper's and the general ones, on a card taken for one of two multiprocessors: blocks
//! that take several heads in turn do so here too.

use std::sync::Arc;

use candle_core::{Device, Result, Var};

use super::kernel::{Halves, NONE, compare, flat, unwritten, unwritten_f32};
use super::{Row, kinds};
use crate::model::gpu::Sizes;
use crate::model::gpu::kernels::{
    AttentionGradient, Rotation, attention_backward, attention_forward, attention_parts,
};
use crate::ops::attention as reference;
use crate::ops::cuda::{Buffer, Gpu};
use crate::ops::{RopeKind, RopeTable};

pub fn attention(gpu: &Arc<Gpu>) -> Result<Vec<Row>> {
    let mut kinds = kinds(gpu, 2);
    if gpu.is_hopper() {
        kinds.push(("Hopper's for few heads", gpu.taken_for(false, 1024)));
    }
    let mut rows = Vec::new();
    for (kind, card) in &kinds {
        for (batch, tokens) in [(3, 35), (2, 77), (1, 131), (2, 256), (1, 263)] {
            rows.extend(one(card, kind, batch, tokens)?);
        }
    }
    Ok(rows)
}

fn one(gpu: &Gpu, kind: &str, batch: usize, tokens: usize) -> Result<Vec<Row>> {
    let s = Sizes {
        batch,
        tokens,
        width: 192,
        heads: 3,
        ..NONE
    };
    let (n, c) = (s.rows(), s.width);
    let qkv = Halves::new(gpu, 1, &[batch, tokens, 3 * c])?;
    let dout = Halves::new(gpu, 2, &[batch, tokens, c])?;
    let table = RopeTable::new((1, tokens), 64, 1e4, RopeKind::OneD, &Device::Cpu)?;
    let [cos, sin] = [table.cos(), table.sin()].map(|x| Buffer::from_host(gpu, &flat(x)?));
    let (cos, sin) = (cos?, sin?);
    let rope = Rotation {
        cos: cos.address(),
        sin: sin.address(),
    };
    let (out, lse, dqkv) = (
        unwritten(gpu, n * c)?,
        unwritten_f32(gpu, n * s.heads)?,
        unwritten(gpu, n * 3 * c)?,
    );
    let parts = unwritten_f32(gpu, attention_parts(tokens) * n * c)?;
    attention_forward(gpu, &s, rope, qkv.address(), out.address(), lse.address())?;
    let at = AttentionGradient {
        qkv: qkv.address(),
        out: out.address(),
        dout: dout.address(),
        lse: lse.address(),
        dqkv: dqkv.address(),
        parts: parts.address(),
    };
    attention_backward(gpu, &s, rope, &at)?;

    let var = Var::from_tensor(&qkv.values)?;
    let y = reference(&var, s.heads, Some(&table))?;
    let gradients = (&y * &dout.values)?.sum_all()?.backward()?;
    let gradient = gradients.get(&var).map_or(Ok(Vec::new()), flat)?;
    let name = |what: &str| format!("attention, {kind}, {batch} images of {tokens} tokens: {what}");
    Ok(vec![
        compare(name("y"), &out, &flat(&y)?)?,
        compare(name("gradient of q, k and v"), &dqkv, &gradient)?,
    ])
}
