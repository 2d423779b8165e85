//! Checks SwiGLU's kernels, alone and fused into the matmuls beside it.

use std::sync::Arc;

use candle_core::{Result, Tensor, Var};

use super::cuda::{
    swiglu_backward, swiglu_forward, swiglu_product_backward, swiglu_product_forward,
};
use super::swiglu as reference;
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::Row;
use crate::ops::cuda::operands::{Halves, compare, flat, unwritten};

pub fn check(gpu: &Arc<Gpu>) -> Result<Vec<Row>> {
    let (n, f) = (87, 40);
    let (x, dh) = (
        Halves::new(gpu, 1, &[n, 2 * f])?,
        Halves::new(gpu, 2, &[n, f])?,
    );
    let (h, dx) = (unwritten(gpu, n * f)?, unwritten(gpu, n * 2 * f)?);
    swiglu_forward(gpu, [n, f], x.view(), h.view_mut())?;
    swiglu_backward(gpu, [n, f], x.view(), dh.view(), dx.view_mut())?;

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
    let few = gpu.taken_for(false, 6);
    for width in [264, 776] {
        rows.extend(in_products(&few, [308, width, 328])?);
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
fn in_products(gpu: &Gpu, sizes: [usize; 3]) -> Result<Vec<Row>> {
    let [n, c, f] = sizes;
    let (y, dbranch) = (Halves::new(gpu, 1, &[n, c])?, Halves::new(gpu, 2, &[n, c])?);
    let smaller = |seed, shape: &[usize]| {
        let random = Halves::new(gpu, seed, shape)?;
        Halves::of(gpu, &(random.values / (c as f64).sqrt())?)
    };
    let (w12, w3) = (smaller(3, &[2 * f, c])?, smaller(4, &[c, f])?);
    let (h, again) = (unwritten(gpu, n * f)?, unwritten(gpu, n * f)?);
    let (x, dx) = (unwritten(gpu, n * 2 * f)?, unwritten(gpu, n * 2 * f)?);
    for (x, h) in [(None, &h), (Some(x.view_mut()), &again)] {
        swiglu_product_forward(gpu, sizes, y.view(), w12.view(), x, h.view_mut())?;
    }
    let (dy, to) = (dbranch.view(), dx.view_mut());
    swiglu_product_backward(gpu, sizes, dy, w3.view(), x.view(), to)?;

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
