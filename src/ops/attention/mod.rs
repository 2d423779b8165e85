//! Bidirectional multi-head attention with rotary positions, from packed q, k, v.
//!
//! y = softmax(R(q)·R(k)ᵀ/√d)·v for every image and head of width d = C/heads, R the rotation of RoPE (Su et al. 2021) in
//! LLaMA's half-split form, or the identity. qkv [B,N,3C] = [q | k | v], each heads·d wide → [B,N,C]. Gradient to qkv.

mod reference;
mod rope;

use super::check;
use candle_core::{Result, Tensor, bail};
pub use rope::{RopeKind, RopeTable};

/// qkv [B,N,3C] → [B,N,C]; the table has N rows for heads of width C/heads.
pub fn attention(qkv: &Tensor, heads: usize, rope: Option<&RopeTable>) -> Result<Tensor> {
    let [_, n, packed] = check::dims("attention", "qkv", qkv, "[B,N,3C]")?;
    if heads == 0 || packed == 0 || packed % (3 * heads) != 0 {
        bail!("attention: qkv has {packed} columns, expected a multiple of 3·{heads} heads");
    }
    if let Some(table) = rope {
        let expected = [n, packed / (3 * heads) / 2];
        check::shape("attention", "the rope table", table.cos(), &expected)?;
        if packed / (3 * heads) % 2 != 0 {
            bail!(
                "attention: heads of width {} cannot be rotated in halves",
                packed / (3 * heads)
            );
        }
    }
    reference::attention(qkv, heads, rope)
}
