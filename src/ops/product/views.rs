//! Matmuls of typed views: bf16 by cuBLASLt or a custom kernel, f32 by cuBLAS without TF32.
//!
//! Row-major throughout; sums in f32.

use candle_core::Result;
use candle_core::cuda_backend::cudarc::cublas::result;
use candle_core::cuda_backend::cudarc::cublas::sys::cublasOperation_t::{
    self, CUBLAS_OP_N, CUBLAS_OP_T,
};
use candle_core::cuda_backend::cudarc::driver::ValidAsZeroBits;
use half::bf16;

use super::cublaslt::Product;
use crate::ops::cuda::{Element, Gpu, View, ViewMut};

/// An element type of matrix products.
pub trait Multiply: Element + ValidAsZeroBits {
    /// c[m,n] = a[m,k]·b[n,k]ᵀ, sizes [m,k,n], each a multiple of 8.
    fn by_rows(
        gpu: &Gpu,
        sizes: [usize; 3],
        a: View<Self>,
        b: View<Self>,
        c: ViewMut<Self>,
    ) -> Result<()>
    where
        Self: Sized;

    /// c[m,n] = a[rows,m]ᵀ·b[rows,n] in f32, added to c if `accumulate`; sizes [rows,m,n], m and n
    /// multiples of 8.
    fn outer(
        gpu: &Gpu,
        sizes: [usize; 3],
        a: View<Self>,
        b: View<Self>,
        c: ViewMut<f32>,
        accumulate: bool,
    ) -> Result<()>
    where
        Self: Sized;
}

fn check(lens: [usize; 3], [a, b, c]: [usize; 3]) {
    assert!(
        lens[0] >= a && lens[1] >= b && lens[2] >= c,
        "a product of {a}, {b} and {c} elements over views of {lens:?}"
    );
}

impl Multiply for bf16 {
    fn by_rows(
        gpu: &Gpu,
        [m, k, n]: [usize; 3],
        a: View<Self>,
        b: View<Self>,
        c: ViewMut<Self>,
    ) -> Result<()> {
        let lens = [a.len(), b.len(), c.len()];
        check(lens, [m * k, n * k, m * n]);
        let product = Product::forward(m, k, n);
        gpu.matmul()?.run(gpu, &product, a, b, c, None)
    }

    fn outer(
        gpu: &Gpu,
        [rows, m, n]: [usize; 3],
        a: View<Self>,
        b: View<Self>,
        c: ViewMut<f32>,
        accumulate: bool,
    ) -> Result<()> {
        let lens = [a.len(), b.len(), c.len()];
        check(lens, [rows * m, rows * n, m * n]);
        let product = Product {
            accumulate,
            ..Product::weight_gradient(rows, n, m)
        };
        gpu.matmul()?.run(gpu, &product, a, b, c, None)
    }
}

/// c[m,n] = op(a)·op(b) (+ c) by cuBLAS, which counts columns first: cᵀ = op(b)ᵀ·op(a)ᵀ.
fn sgemm(
    gpu: &Gpu,
    [m, k, n]: [usize; 3],
    (b, b_op, b_width): (View<f32>, cublasOperation_t, usize),
    (a, a_op, a_width): (View<f32>, cublasOperation_t, usize),
    c: ViewMut<f32>,
    accumulate: bool,
) -> Result<()> {
    check([a.len(), b.len(), c.len()], [m * k, n * k, m * n]);
    let (alpha, beta) = (1f32, if accumulate { 1f32 } else { 0f32 });
    let cublas = gpu.device().cublas_handle();
    // SAFETY: the views reach as far as the product, on the handle's device and stream.
    unsafe {
        result::sgemm(
            *cublas.handle(),
            b_op,
            a_op,
            n as i32,
            m as i32,
            k as i32,
            &raw const alpha,
            b.address() as *const f32,
            b_width as i32,
            a.address() as *const f32,
            a_width as i32,
            &raw const beta,
            c.address() as *mut f32,
            n as i32,
        )
    }
    .map_err(candle_core::Error::wrap)
}

impl Multiply for f32 {
    fn by_rows(
        gpu: &Gpu,
        [m, k, n]: [usize; 3],
        a: View<Self>,
        b: View<Self>,
        c: ViewMut<Self>,
    ) -> Result<()> {
        let (a, b) = ((a, CUBLAS_OP_N, k), (b, CUBLAS_OP_T, k));
        sgemm(gpu, [m, k, n], b, a, c, false)
    }

    fn outer(
        gpu: &Gpu,
        [rows, m, n]: [usize; 3],
        a: View<Self>,
        b: View<Self>,
        c: ViewMut<f32>,
        accumulate: bool,
    ) -> Result<()> {
        let (a, b) = ((a, CUBLAS_OP_T, m), (b, CUBLAS_OP_N, n));
        sgemm(gpu, [m, rows, n], b, a, c, accumulate)
    }
}
