//! The step in one pass over memory: parameter, moments and average are read and written once, the
//! gradient is read once.
//!
//! candle lends one tensor mutably at a time; `borrow_mut` nests the loans. Every element is
//! computed by the same f32 operations on every instruction set, so results are bit-identical on
//! every machine.

use std::cell::Cell;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor, Var, bail};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::AdamStep;
use crate::ops::slices;

/// Elements per parallel task.
const CHUNK: usize = 1 << 14;

pub fn adam_step(
    param: &Var,
    grad: &Tensor,
    m: &Var,
    v: &Var,
    ema: Option<&Var>,
    step: &AdamStep,
) -> Result<()> {
    let factors = Factors::new(step);
    slices::read([grad], |[grad]| {
        borrow_mut(param, |param| {
            borrow_mut(m, |m| {
                borrow_mut(v, |v| {
                    let chunks = param
                        .par_chunks_mut(CHUNK)
                        .zip(m.par_chunks_mut(CHUNK))
                        .zip(v.par_chunks_mut(CHUNK))
                        .zip(grad.par_chunks(CHUNK))
                        .map(|(((param, m), v), grad)| Chunk {
                            param,
                            m,
                            v,
                            grad,
                            ema: &mut [],
                            factors,
                        });
                    let Some(ema) = ema else {
                        chunks.for_each(|chunk| Arch::new().dispatch(chunk));
                        return Ok(());
                    };
                    borrow_mut(ema, |ema| {
                        chunks
                            .zip(ema.par_chunks_mut(CHUNK))
                            .for_each(|(chunk, ema)| Arch::new().dispatch(Chunk { ema, ..chunk }));
                        Ok(())
                    })
                })
            })
        })
    })?
}

/// The constant factors, rounded as in PyTorch: computed in f64, used in f32.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    pub keep: f32,
    pub grad_scale: f32,
    pub rate1: f32,
    pub beta2: f32,
    pub rate2: f32,
    pub root_correction2: f32,
    pub eps: f32,
    pub step_size: f32,
    pub ema_rate: f32,
}

impl Factors {
    pub(super) fn new(step: &AdamStep) -> Self {
        let (correction1, correction2) = step.corrections();
        Self {
            keep: (1.0 - step.lr * step.weight_decay) as f32,
            grad_scale: step.grad_scale,
            rate1: (1.0 - step.beta1) as f32,
            beta2: step.beta2 as f32,
            rate2: (1.0 - step.beta2) as f32,
            root_correction2: correction2.sqrt() as f32,
            eps: step.eps as f32,
            step_size: (step.lr / correction1) as f32,
            ema_rate: step.ema_decay.map_or(0.0, |decay| 1.0 - decay),
        }
    }
}

/// Slices of equal length; `ema` is empty if there is no average.
struct Chunk<'a> {
    param: &'a mut [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
    grad: &'a [f32],
    ema: &'a mut [f32],
    factors: Factors,
}

impl WithSimd for Chunk<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let f = self.factors;
        let n = self.param.len();
        let (param, m, v, grad) = (self.param, self.m, self.v, self.grad);
        let (m, v, grad) = (&mut m[..n], &mut v[..n], &grad[..n]);
        for i in 0..n {
            let g = grad[i] * f.grad_scale;
            m[i] += f.rate1 * (g - m[i]);
            v[i] = f.beta2 * v[i] + f.rate2 * g * g;
            let denominator = v[i].sqrt() / f.root_correction2 + f.eps;
            param[i] = param[i] * f.keep - f.step_size * (m[i] / denominator);
        }
        for (average, param) in self.ema.iter_mut().zip(&*param) {
            *average += f.ema_rate * (param - *average);
        }
    }
}

/// Σ x² in f64, in an order that depends on the length alone.
pub fn sum_of_squares(tensor: &Tensor) -> Result<f64> {
    slices::read([tensor], |[values]| {
        let chunks: Vec<f64> = values
            .par_chunks(CHUNK)
            .map(|chunk| Arch::new().dispatch(Squares(chunk)))
            .collect();
        chunks.iter().sum()
    })
}

struct Squares<'a>(&'a [f32]);

impl WithSimd for Squares<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f64 {
        let mut sums = [0f64; 16];
        let (whole, rest) = self.0.as_chunks::<16>();
        for values in whole {
            for (sum, x) in sums.iter_mut().zip(values) {
                *sum += f64::from(*x) * f64::from(*x);
            }
        }
        for (sum, x) in sums.iter_mut().zip(rest) {
            *sum += f64::from(*x) * f64::from(*x);
        }
        sums.iter().sum()
    }
}

/// Runs `f` on the values of a variable in place, while its storage is locked.
fn borrow_mut(var: &Var, f: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<()> {
    var.inplace_op1(&Loan(Cell::new(Some(f))))
}

/// An in-place operation that runs an arbitrary closure.
struct Loan<F>(Cell<Option<F>>);

impl<F: FnOnce(&mut [f32]) -> Result<()>> InplaceOp1 for Loan<F> {
    fn name(&self) -> &'static str {
        "adam-step"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        match (storage, layout.contiguous_offsets(), self.0.take()) {
            (CpuStorage::F32(values), Some((from, to)), Some(f)) => f(&mut values[from..to]),
            _ => bail!("adam_step: a variable is not contiguous f32"),
        }
    }
}
