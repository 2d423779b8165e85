//! Bidirectional multi-head attention with rotary positions, from packed q, k, v.
//!
//! y = softmax(R(q)·R(k)ᵀ/√d)·v for every image and head of width d = C/heads, R the rotation of
//! RoPE (Su et al. 2021) in LLaMA's half-split form, or the identity. qkv [B,N,3C] = [q | k | v],
//! each heads·d wide → [B,N,C]. Gradient to qkv.

#[cfg(feature = "cuda")]
pub mod check;
#[cfg(feature = "cuda")]
pub mod check_heads;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod head;
mod reference;
mod rope;
mod rotation;
#[cfg(test)]
mod tests;
#[cfg(feature = "cuda")]
mod wide;

use super::{check as shapes, slices, tape};
use candle_core::{Result, Tensor, bail};
pub use rope::{RopeKind, RopeTable};
use std::sync::OnceLock;

/// qkv [B,N,3C] → [B,N,C]; the table has N rows for heads of width C/heads.
pub fn attention(qkv: &Tensor, heads: usize, rope: Option<&RopeTable>) -> Result<Tensor> {
    let [_, n, packed] = shapes::dims("attention", "qkv", qkv, "[B,N,3C]")?;
    if heads == 0 || packed == 0 || !packed.is_multiple_of(3 * heads) {
        bail!("attention: qkv has {packed} columns, expected a multiple of 3·{heads} heads");
    }
    if let Some(table) = rope {
        let expected = [n, packed / (3 * heads) / 2];
        shapes::shape("attention", "the rope table", table.cos(), &expected)?;
        if !(packed / (3 * heads)).is_multiple_of(2) {
            bail!(
                "attention: heads of width {} cannot be rotated in halves",
                packed / (3 * heads)
            );
        }
    }
    let mut inputs = vec![qkv];
    inputs.extend(rope.iter().flat_map(|table| [table.cos(), table.sin()]));
    if slices::are_f32_on_cpu(&inputs) {
        let attention = cpu::Attention {
            heads,
            rope: rope.cloned(),
            log_sums: OnceLock::new(),
        };
        return tape::apply1(qkv, attention);
    }
    #[cfg(feature = "cuda")]
    if heads == 1 && rope.is_none() && slices::have_kernels(&[qkv]) {
        return tape::apply1(qkv, wide::WideAttention::default());
    }
    let rope = rope.cloned();
    tape::plain([qkv], move |[qkv]| {
        reference::attention(qkv, heads, rope.as_ref())
    })
}
