//! Checks attention's kernels for heads of width 64: each range of lengths, sm_90's and the general
//! ones, on a GPU taken for one of two multiprocessors, so that blocks take several heads in turn.

use std::sync::Arc;

use candle_core::{Device, Result, Var};

use super::cuda::{
    AttentionGradient, AttentionSizes, Rotation, attention_backward, attention_forward,
};
use super::{RopeKind, RopeTable, attention as reference};
use crate::ops::cuda::compare::Row;
use crate::ops::cuda::operands::{Halves, compare, flat, kinds, unwritten, unwritten_f32};
use crate::ops::cuda::{Buffer, Gpu};

pub fn check(gpu: &Arc<Gpu>) -> Result<Vec<Row>> {
    let mut kinds = kinds(gpu, 2);
    if gpu.is_hopper() {
        kinds.push(("sm_90's for few heads", gpu.taken_for(false, 1024)));
    }
    let mut rows = Vec::new();
    for (kind, gpu) in &kinds {
        for (batch, tokens) in [(3, 35), (2, 77), (1, 131), (2, 256), (1, 263)] {
            rows.extend(one(gpu, kind, batch, tokens)?);
        }
    }
    Ok(rows)
}

fn one(gpu: &Gpu, kind: &str, batch: usize, tokens: usize) -> Result<Vec<Row>> {
    let s = AttentionSizes {
        batch,
        tokens,
        heads: 3,
    };
    let (n, c) = (batch * tokens, 192);
    let qkv = Halves::new(gpu, 1, &[batch, tokens, 3 * c])?;
    let dout = Halves::new(gpu, 2, &[batch, tokens, c])?;
    let table = RopeTable::new((1, tokens), 64, 1e4, RopeKind::OneD, &Device::Cpu)?;
    let [cos, sin] = [table.cos(), table.sin()].map(|x| Buffer::from_host(gpu, &flat(x)?));
    let (cos, sin) = (cos?, sin?);
    let rope = Rotation {
        cos: cos.view(),
        sin: sin.view(),
    };
    let (out, lse, dqkv) = (
        unwritten(gpu, n * c)?,
        unwritten_f32(gpu, n * s.heads)?,
        unwritten(gpu, n * 3 * c)?,
    );
    let parts = unwritten_f32(gpu, s.parts().max(1))?;
    attention_forward(gpu, s, rope, qkv.view(), out.view_mut(), lse.view_mut())?;
    let at = AttentionGradient {
        qkv: qkv.view(),
        out: out.view(),
        dout: dout.view(),
        lse: lse.view(),
        dqkv: dqkv.view_mut(),
        parts: parts.view_mut(),
    };
    attention_backward(gpu, s, rope, at)?;

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
