//! AdaLN's two operations in one pass with the linear map beside them, for weights that no longer
//! change, on the CPU: rows are normalized as they are multiplied, and added to the residual stream
//! while they are in the cache.
//!
//! The bits are those of one operation after the other; anything else than f32 on a CPU without a
//! gradient is computed so.

use std::ops::Range;

use candle_core::{Result, Tensor};

use super::cpu::{modulate, reciprocal_rms};
use super::{gate_residual, rms_norm_modulate};
use crate::ops::product::{Matrix, Packed, Panels, Plain, Rows, room, times_then, times_through};
use crate::ops::swiglu::gated;
use crate::ops::{check, linear_packed, linear_swiglu, simd, slices};

/// A normalized input: x [B,N,C] with shift and scale [B,C].
#[derive(Debug, Clone, Copy)]
pub struct Normed<'a> {
    pub x: &'a Tensor,
    pub shift: &'a Tensor,
    pub scale: &'a Tensor,
    pub eps: f64,
}

impl Normed<'_> {
    /// rms_norm_modulate of it.
    pub fn tensor(self) -> Result<Tensor> {
        rms_norm_modulate(self.x, self.shift, self.scale, self.eps)
    }

    /// `f` of the rows and the weight's panels [C,O].
    fn times(
        self,
        weight: &Tensor,
        packed: &Packed,
        f: impl FnOnce(&Modulated, &Panels) -> Vec<f32>,
    ) -> Result<Vec<f32>> {
        const NAME: &str = "rms_norm_modulate";
        let [b, n, c] = check::dims(NAME, "x", self.x, "[B,N,C]")?;
        check::shape(NAME, "shift", self.shift, &[b, c])?;
        check::shape(NAME, "scale", self.scale, &[b, c])?;
        let (o, i) = weight.dims2()?;
        check::shape(NAME, "the weight behind it", weight, &[o, c])?;
        let inputs = [self.x, self.shift, self.scale, weight];
        slices::read(inputs, |[x, shift, scale, weight]| {
            let panels = packed.get_or_make(|| Panels::of_outputs(weight, o, i, 1));
            let rows = Modulated {
                x,
                shift,
                scale,
                n,
                c,
                eps: self.eps,
            };
            f(&rows, panels)
        })
    }
}

fn is_frozen(inputs: &[&Tensor]) -> bool {
    slices::are_f32_on_cpu(inputs) && inputs.iter().all(|x| !x.track_op())
}

/// The rows of rms_norm_modulate.
struct Modulated<'a> {
    x: &'a [f32],
    shift: &'a [f32],
    scale: &'a [f32],
    n: usize,
    c: usize,
    eps: f64,
}

impl Rows for Modulated<'_> {
    fn count(&self) -> usize {
        self.x.len() / self.c
    }

    fn depth(&self) -> usize {
        self.c
    }

    fn block<'a>(
        &'a self,
        rows: Range<usize>,
        terms: Range<usize>,
        buffer: &'a mut Vec<f32>,
    ) -> Matrix<'a> {
        let size = (rows.len(), terms.len());
        let out = room(buffer, size.0 * size.1);
        simd::vectorized(
            #[inline(always)]
            || {
                for (row, y) in rows.clone().zip(out.chunks_exact_mut(terms.len())) {
                    let x = &self.x[row * self.c..][..self.c];
                    let r = reciprocal_rms(x, self.eps);
                    let from = row / self.n * self.c + terms.start;
                    let (x, shift) = (&x[terms.clone()], &self.shift[from..]);
                    modulate(y, x, r, shift, &self.scale[from..]);
                }
            },
        );
        Matrix::dense(out, size)
    }
}

/// The normalized rows times `weight` [O,C] transposed: [B,N,O].
pub fn modulated_linear(input: Normed, weight: &Tensor, packed: &Packed) -> Result<Tensor> {
    if !is_frozen(&[input.x, input.shift, input.scale, weight]) {
        return linear_packed(&input.tensor()?, weight, None, Some(packed));
    }
    let y = input.times(weight, packed, |rows, panels| {
        times_then(rows, panels, None, |_, _| {})
    })?;
    let (b, n, _) = input.x.dims3()?;
    Tensor::from_vec(y, (b, n, weight.dim(0)?), input.x.device())
}

/// SwiGLU of the normalized rows times `weight` [2F,C] transposed: [B,N,F].
pub fn modulated_swiglu(input: Normed, weight: &Tensor, packed: &Packed) -> Result<Tensor> {
    let f = weight.dim(0)? / 2;
    if !is_frozen(&[input.x, input.shift, input.scale, weight]) || weight.dim(0)? != 2 * f {
        return linear_swiglu(&input.tensor()?, weight, packed);
    }
    let y = input.times(weight, packed, |rows, panels| {
        times_through(rows, panels, |halves, y, columns| {
            gated(halves, y, f, columns);
        })
    })?;
    let (b, n, _) = input.x.dims3()?;
    Tensor::from_vec(y, (b, n, f), input.x.device())
}

/// x [B,N,C] + gate [B,C] times (`branch` [B,N,I] times `weight` [C,I] transposed).
pub fn gated_linear(
    x: &Tensor,
    gate: &Tensor,
    branch: &Tensor,
    weight: &Tensor,
    packed: &Packed,
) -> Result<Tensor> {
    if !is_frozen(&[x, gate, branch, weight]) {
        return gate_residual(x, gate, &linear_packed(branch, weight, None, Some(packed))?);
    }
    const NAME: &str = "gate_residual";
    let [b, n, c] = check::dims(NAME, "x", x, "[B,N,C]")?;
    let [_, _, i] = check::dims(NAME, "branch", branch, "[B,N,I]")?;
    check::shape(NAME, "gate", gate, &[b, c])?;
    check::shape(NAME, "branch", branch, &[b, n, i])?;
    check::shape(NAME, "the branch's weight", weight, &[c, i])?;
    let y = slices::read([x, gate, branch, weight], |[x, gate, branch, weight]| {
        let panels = packed.get_or_make(|| Panels::of_outputs(weight, c, i, 1));
        let rows = Plain::new(branch, i);
        times_then(&rows, panels, None, |first, y| {
            let x = &x[first * c..][..y.len()];
            simd::vectorized(
                #[inline(always)]
                || {
                    let rows = y.chunks_exact_mut(c).zip(x.chunks_exact(c));
                    for (row, (y, x)) in (first..).zip(rows) {
                        let gate = &gate[row / n * c..][..c];
                        for i in 0..c {
                            y[i] = gate[i].mul_add(y[i], x[i]);
                        }
                    }
                },
            )
        })
    })?;
    Tensor::from_vec(y, (b, n, c), x.device())
}
