//! Attention of one wide head without positions on a GPU, the tokenizer's: two batched products and
//! the softmax between.
//!
//! Scores and their gradients are f32; the weights [B,N,N] are kept for the way back in the maps'
//! type.

use std::sync::OnceLock;

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, WithDType, bail,
};
use half::bf16;

use crate::ops::cuda::{Element, Gpu, Output, View, ViewMut, launch};
use crate::ops::product::batched::{Matrices, multiply};

/// Rows a block of the softmax.
const ROWS: usize = 8;

#[derive(Default)]
pub(super) struct WideAttention {
    /// softmax(q·kᵀ/√C) [B,N,N]
    weights: OnceLock<Tensor>,
}

/// q, k or v (0, 1, 2) of packed rows [N,3C].
fn part(n: usize, c: usize, which: usize) -> Matrices {
    Matrices {
        rows: n,
        columns: c,
        pitch: 3 * c,
        stride: 3 * n * c,
        from: which * c,
    }
}

impl WideAttention {
    fn forward<T: Element + WithDType>(
        &self,
        gpu: &Gpu,
        [b, n, c]: [usize; 3],
        qkv: View<T>,
    ) -> Result<CudaStorage> {
        let (q, k, v) = (part(n, c, 0), part(n, c, 1), part(n, c, 2));
        let (maps, square) = (Matrices::dense(n, c), Matrices::dense(n, n));
        let mut scores = Output::<f32>::new(gpu.device(), b * n * n)?;
        let to = (scores.view_mut(), square);
        multiply(gpu, b, (qkv, q, false), (qkv, k, true), to)?;
        let mut weights = Output::<T>::new(gpu.device(), b * n * n)?;
        let grid = ((b * n).div_ceil(ROWS) as u32, 1, 1);
        let scale = 1.0 / (c as f32).sqrt();
        // SAFETY: b·n rows of n elements each.
        unsafe {
            launch!(gpu, "attention_softmax", &format!("softmax_{}", T::NAME), grid, 256, 0;
                scores.view(), weights.view_mut(), (b * n) as i64, n as i32, scale)?;
        }
        let mut y = Output::<T>::new(gpu.device(), b * n * c)?;
        let weights_view = (weights.view(), square, false);
        multiply(gpu, b, weights_view, (qkv, v, false), (y.view_mut(), maps))?;
        self.weights.get_or_init(|| weights.tensor((b, n, n)));
        Ok(y.storage())
    }

    fn backward<T: Element + WithDType>(&self, qkv: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let (b, n, packed) = qkv.dims3()?;
        let c = packed / 3;
        let Some(weights) = self.weights.get() else {
            bail!("attention: the gradient is asked for before the result");
        };
        let gpu = Gpu::of(dy.device().as_cuda_device()?)?;
        let [q, k, v] = [0, 1, 2].map(|which| part(n, c, which));
        let (maps, square) = (Matrices::dense(n, c), Matrices::dense(n, n));
        let (rows, weights) = (View::<T>::of(qkv)?, View::<T>::of(weights)?);
        let dy = View::<T>::of(dy)?;
        let mut d_weights = Output::<f32>::new(gpu.device(), b * n * n)?;
        let to = (d_weights.view_mut(), square);
        multiply(&gpu, b, (dy, maps, false), (rows, v, true), to)?;
        let mut d_scores = Output::<T>::new(gpu.device(), b * n * n)?;
        let grid = ((b * n).div_ceil(ROWS) as u32, 1, 1);
        let (name, scale) = (
            format!("softmax_gradient_{}", T::NAME),
            1.0 / (c as f32).sqrt(),
        );
        // SAFETY: b·n rows of n elements each.
        unsafe {
            launch!(gpu, "attention_softmax", &name, grid, 256, 0;
                weights, d_weights.view(), d_scores.view_mut(), (b * n) as i64, n as i32, scale)?;
        }
        let mut d_qkv = Output::<T>::new(gpu.device(), b * n * packed)?;
        let mut d_qkv_view = d_qkv.view_mut();
        let mut product = |a: (View<T>, bool), b_: (View<T>, Matrices), to: Matrices| {
            let to = (ViewMut::again(&mut d_qkv_view), to);
            multiply(&gpu, b, (a.0, square, a.1), (b_.0, b_.1, false), to)
        };
        let scores = d_scores.view();
        product((scores, false), (rows, k), q)?; // dq = dS·k
        product((scores, true), (rows, q), k)?; // dk = dSᵀ·q
        product((weights, true), (dy, maps), v)?; // dv = Pᵀ·dy
        Ok(d_qkv.tensor((b, n, packed)))
    }
}

impl CustomOp1 for WideAttention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("the wide head's attention is a GPU's")
    }

    fn cuda_fwd(&self, qkv: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (b, n, packed) = layout.shape().dims3()?;
        let (gpu, sizes) = (Gpu::of(qkv.device())?, [b, n, packed / 3]);
        let y = match qkv.dtype() {
            DType::F32 => self.forward(&gpu, sizes, View::<f32>::stored(qkv, layout)?)?,
            DType::BF16 => self.forward(&gpu, sizes, View::<bf16>::stored(qkv, layout)?)?,
            other => bail!("attention: {other:?} has no kernels"),
        };
        Ok((y, (b, n, packed / 3).into()))
    }

    fn bwd(&self, qkv: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dy = dy.contiguous()?;
        Ok(Some(match qkv.dtype() {
            DType::F32 => self.backward::<f32>(qkv, &dy)?,
            _ => self.backward::<bf16>(qkv, &dy)?,
        }))
    }
}
