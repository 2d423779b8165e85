//! Products of few rows, each of their kernels by a size and a number of multiprocessors that it alone fits.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::Row;
use super::kernel::{Halves, NONE, compare, flat, row, same_bits, unwritten};
use crate::model::gpu::{Sizes, kernels};
use crate::ops::cuda::Gpu;
use crate::ops::swiglu as swiglu_on_cpu;

/// With and without a bias; fewer and more k than a block holds at once.
pub fn products_of_few(gpu: &Arc<Gpu>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (multiprocessors, [n, input, output]) in [
        (8, [70, 1048, 104]),
        (2, [70, 40, 56]),
        (2, [3, 520, 80]),
        (2, [200, 712, 72]),
        (4, [200, 328, 168]),
    ] {
        let card = gpu.taken_for(false, multiprocessors);
        let (x, weight) = operands(&card, [n, input, output])?;
        let bias = Halves::new(&card, 3, &[output])?;
        let y = x.values.matmul(&weight.values.t()?.contiguous()?)?;
        let name = |what: &str| format!("product of {n} rows, {input} to {output}{what}");
        for (what, at, expected) in [
            ("", 0, flat(&y)?),
            (
                ", and a bias",
                bias.address(),
                flat(&y.broadcast_add(&bias.values)?)?,
            ),
        ] {
            let found = unwritten(&card, n * output)?;
            let sizes = [n, input, output];
            let (x, weight, y) = (x.address(), weight.address(), found.address());
            let served = kernels::product_of_few(&card, sizes, x, weight, at, y)?;
            rows.push(match served {
                true => compare(name(what), &found, &expected)?,
                false => row(name(": not served"), 1.0, 0.0),
            });
        }
    }
    Ok(rows)
}

/// SwiGLU within them, against the product's own gate and up: equal bits.
pub fn swiglu_of_few(gpu: &Arc<Gpu>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (multiprocessors, [n, c, f]) in [
        (4, [200, 520, 120]),
        (2, [70, 264, 72]),
        (2, [131, 72, 104]),
    ] {
        let card = gpu.taken_for(false, multiprocessors);
        let (y, weight) = operands(&card, [n, c, 2 * f])?;
        let (hidden, gate_up) = (unwritten(&card, n * f)?, unwritten(&card, n * 2 * f)?);
        let [y_at, w_at] = [y.address(), weight.address()];
        let served =
            kernels::swiglu_product_of_few(&card, [n, c, f], y_at, w_at, hidden.address())?
                && kernels::product_of_few(gpu, [n, c, 2 * f], y_at, w_at, 0, gate_up.address())?;
        let name = |what: &str| format!("swiglu within the product of {n} rows, {c} to {f}{what}");
        if !served {
            rows.push(row(name(": not served"), 1.0, 0.0));
            continue;
        }
        let product = y.values.matmul(&weight.values.t()?.contiguous()?)?;
        rows.push(compare(
            name(": h"),
            &hidden,
            &flat(&swiglu_on_cpu(&product)?)?,
        )?);
        let s = Sizes {
            tokens: n,
            hidden: f,
            ..NONE
        };
        let apart = unwritten(&card, n * f)?;
        kernels::swiglu_forward(&card, &s, gate_up.address(), apart.address())?;
        let apart: Vec<f32> = apart.read()?.iter().map(|x| x.to_f32()).collect();
        rows.push(same_bits(
            name(": bits that differ from a kernel after the product"),
            &hidden,
            &apart,
        )?);
    }
    Ok(rows)
}

/// Rows, and weights that keep their size.
fn operands(gpu: &Gpu, [n, input, output]: [usize; 3]) -> Result<(Halves, Halves)> {
    let weight: Tensor = Halves::new(gpu, 2, &[output, input])?.values;
    Ok((
        Halves::new(gpu, 1, &[n, input])?,
        Halves::of(gpu, &(weight / (input as f64).sqrt())?)?,
    ))
}
