//! SwiGLU's kernels alone, and those within the products beside it.

use std::sync::Arc;

use candle_core::{Result, Tensor, Var};

use super::Row;
use super::kernel::{Halves, NONE, compare, flat, unwritten};
use crate::model::gpu::{Sizes, kernels};
use crate::ops::cuda::Gpu;
use crate::ops::swiglu as reference;

pub fn swiglu(gpu: &Arc<Gpu>) -> Result<Vec<Row>> {
    let s = Sizes {
        batch: 3,
        tokens: 29,
        hidden: 40,
        ..NONE
    };
    let (n, f) = (s.rows(), s.hidden);
    let (x, dh) = (
        Halves::new(gpu, 1, &[n, 2 * f])?,
        Halves::new(gpu, 2, &[n, f])?,
    );
    let (h, dx) = (unwritten(gpu, n * f)?, unwritten(gpu, n * 2 * f)?);
    kernels::swiglu_forward(gpu, &s, x.address(), h.address())?;
    kernels::swiglu_backward(gpu, &s, x.address(), dh.address(), dx.address())?;

    let (y, expected) = with_gradient(&x.values, &dh.values)?;
    let name = |what: &str| format!("swiglu: {what}");
    let mut rows = vec![
        compare(name("h"), &h, &y)?,
        compare(name("gradient of x"), &dx, &expected)?,
    ];
    if !gpu.is_hopper() {
        return Ok(rows);
    }
    // Few blocks, so that each takes several tiles; more width, so that two share the weights.
    let card = gpu.taken_for(false, 6);
    for width in [264, 776] {
        let s = Sizes {
            batch: 4,
            tokens: 77,
            width,
            hidden: 328,
            ..NONE
        };
        rows.extend(in_products(&card, &s)?);
    }
    Ok(rows)
}

/// SiLU(gate)·up of x, and the gradient of x from that of the result.
fn with_gradient(x: &Tensor, dh: &Tensor) -> Result<(Vec<f32>, Vec<f32>)> {
    let var = Var::from_tensor(x)?;
    let y = reference(&var)?;
    let gradients = (&y * dh)?.sum_all()?.backward()?;
    let expected = gradients.get(&var).map_or(Ok(Vec::new()), flat)?;
    Ok((flat(&y)?, expected))
}

/// Sizes of which no tile is full at the edges.
fn in_products(gpu: &Gpu, s: &Sizes) -> Result<Vec<Row>> {
    let (n, c, f) = (s.rows(), s.width, s.hidden);
    let (y, dbranch) = (Halves::new(gpu, 1, &[n, c])?, Halves::new(gpu, 2, &[n, c])?);
    let smaller = |seed, shape: &[usize]| {
        let random = Halves::new(gpu, seed, shape)?;
        Halves::of(gpu, &(random.values / (c as f64).sqrt())?)
    };
    let (w12, w3) = (smaller(3, &[2 * f, c])?, smaller(4, &[c, f])?);
    let (h, again) = (unwritten(gpu, n * f)?, unwritten(gpu, n * f)?);
    let (x, dx) = (unwritten(gpu, n * 2 * f)?, unwritten(gpu, n * 2 * f)?);
    for (x, h) in [(0, &h), (x.address(), &again)] {
        kernels::swiglu_product_forward(gpu, s, y.address(), w12.address(), x, h.address())?;
    }
    kernels::swiglu_product_backward(
        gpu,
        s,
        dbranch.address(),
        w3.address(),
        x.address(),
        dx.address(),
    )?;

    let product = y.values.matmul(&w12.values.t()?.contiguous()?)?;
    let (expected, gradient) = with_gradient(&product, &dbranch.values.matmul(&w3.values)?)?;
    let name = |what: &str| format!("swiglu within products of {n} rows, width {c}: {what}");
    Ok(vec![
        compare(name("h"), &h, &expected)?,
        compare(name("h beside x"), &again, &expected)?,
        compare(name("x"), &x, &flat(&product)?)?,
        compare(name("gradient of x"), &dx, &gradient)?,
    ])
}
