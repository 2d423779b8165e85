//! Products of many small matrices of equal sizes at once, by cuBLAS: matrices may be parts of
//! wider rows.
//!
//! Row-major; sums in f32.

use std::ffi::c_void;

use candle_core::Result;
use candle_core::cuda_backend::cudarc::cublas::result;
use candle_core::cuda_backend::cudarc::cublas::sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
use candle_core::cuda_backend::cudarc::cublas::sys::cublasGemmAlgo_t::CUBLAS_GEMM_DFALT;
use candle_core::cuda_backend::cudarc::cublas::sys::cublasOperation_t::{CUBLAS_OP_N, CUBLAS_OP_T};
use candle_core::cuda_backend::cudarc::cublas::sys::cudaDataType_t;
use candle_core::{DType, WithDType, bail};

use crate::ops::cuda::{Element, Gpu, View, ViewMut};

/// Matrices [rows,columns] in one view: rows lie `pitch` elements apart, matrices `stride`, the
/// first begins at `from`.
#[derive(Debug, Clone, Copy)]
pub struct Matrices {
    pub rows: usize,
    pub columns: usize,
    pub pitch: usize,
    pub stride: usize,
    pub from: usize,
}

impl Matrices {
    /// One behind the other.
    pub fn dense(rows: usize, columns: usize) -> Self {
        Self {
            rows,
            columns,
            pitch: columns,
            stride: rows * columns,
            from: 0,
        }
    }

    /// Elements up to the end of the last of `count`.
    fn reach(&self, count: usize) -> usize {
        self.from + (count - 1) * self.stride + (self.rows - 1) * self.pitch + self.columns
    }
}

fn kind<T: WithDType>() -> Result<cudaDataType_t> {
    match T::DTYPE {
        DType::F32 => Ok(cudaDataType_t::CUDA_R_32F),
        DType::BF16 => Ok(cudaDataType_t::CUDA_R_16BF),
        DType::F16 => Ok(cudaDataType_t::CUDA_R_16F),
        other => bail!("no products of {other:?}"),
    }
}

/// c = op(a)·op(b) for each of `count` matrices, op the transposition where the flag says so.
///
/// Errors: sizes that do not fit each other; a type that is none of f32, bf16, f16.
pub fn multiply<T: Element + WithDType, C: Element + WithDType>(
    gpu: &Gpu,
    count: usize,
    (a, of_a, a_transposed): (View<T>, Matrices, bool),
    (b, of_b, b_transposed): (View<T>, Matrices, bool),
    (c, of_c): (ViewMut<C>, Matrices),
) -> Result<()> {
    let size = |of: &Matrices, transposed| {
        if transposed {
            (of.columns, of.rows)
        } else {
            (of.rows, of.columns)
        }
    };
    let ((m, k), (depth, n)) = (size(&of_a, a_transposed), size(&of_b, b_transposed));
    let fits = k == depth && (of_c.rows, of_c.columns) == (m, n);
    let reaches = [
        (a.len(), of_a.reach(count)),
        (b.len(), of_b.reach(count)),
        (c.len(), of_c.reach(count)),
    ];
    if !fits || reaches.iter().any(|(len, reach)| reach > len) {
        bail!("no product of {of_a:?} and {of_b:?} to {of_c:?}, {count} each, in {reaches:?}");
    }
    let start = |address: u64, from: usize, bytes: usize| address + (from * bytes) as u64;
    let (alpha, beta) = (1f32, 0f32);
    let flag = |transposed| match transposed {
        true => CUBLAS_OP_T,
        false => CUBLAS_OP_N,
    };
    let cublas = gpu.device().cublas_handle();
    // cuBLAS counts columns first: cᵀ = op(b)ᵀ·op(a)ᵀ.
    // SAFETY: every matrix lies within its view, on the handle's device and stream.
    unsafe {
        result::gemm_strided_batched_ex(
            *cublas.handle(),
            flag(b_transposed),
            flag(a_transposed),
            n as i32,
            m as i32,
            k as i32,
            (&raw const alpha).cast(),
            start(b.address(), of_b.from, size_of::<T>()) as *const c_void,
            kind::<T>()?,
            of_b.pitch as i32,
            of_b.stride as i64,
            start(a.address(), of_a.from, size_of::<T>()) as *const c_void,
            kind::<T>()?,
            of_a.pitch as i32,
            of_a.stride as i64,
            (&raw const beta).cast(),
            start(c.address(), of_c.from, size_of::<C>()) as *mut c_void,
            kind::<C>()?,
            of_c.pitch as i32,
            of_c.stride as i64,
            count as i32,
            CUBLAS_COMPUTE_32F,
            CUBLAS_GEMM_DFALT,
        )
    }
    .map_err(candle_core::Error::wrap)
}
