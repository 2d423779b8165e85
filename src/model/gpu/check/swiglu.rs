//! SwiGLU's kernels alone.

use std::sync::Arc;

use candle_core::{Result, Var};

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
    let (h, again, dx) = (
        unwritten(gpu, n * f)?,
        unwritten(gpu, n * f)?,
        unwritten(gpu, n * 2 * f)?,
    );
    kernels::swiglu_forward(gpu, &s, x.address(), h.address())?;
    kernels::swiglu_backward(
        gpu,
        &s,
        x.address(),
        dh.address(),
        dx.address(),
        again.address(),
    )?;

    let var = Var::from_tensor(&x.values)?;
    let y = reference(&var)?;
    let gradients = (&y * &dh.values)?.sum_all()?.backward()?;
    let expected = gradients.get(&var).map_or(Ok(Vec::new()), flat)?;
    let (name, y) = (|what: &str| format!("swiglu: {what}"), flat(&y)?);
    Ok(vec![
        compare(name("h"), &h, &y)?,
        compare(name("h once more"), &again, &y)?,
        compare(name("gradient of x"), &dx, &expected)?,
    ])
}
