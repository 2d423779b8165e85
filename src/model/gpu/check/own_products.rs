//! Hopper's own products: of few rows, each of the kernels by a size and a number of multiprocessors for which it is the one chosen; and of many.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::Row;
use super::kernel::{Floats, Halves, NONE, compare, flat, row, same_bits, unwritten, widened};
use crate::model::gpu::{Sizes, kernels};
use crate::ops::cuda::Gpu;
use crate::ops::product::cuda::{self as product, Added};
use crate::ops::swiglu as swiglu_on_cpu;

/// With and without a bias; fewer and more k than a block holds at once.
pub fn products_of_few(gpu: &Arc<Gpu>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (multiprocessors, [n, input, output]) in [
        (8, [70, 1048, 104]),
        (2, [70, 584, 56]),
        (2, [3, 520, 80]),
        (2, [70, 40, 80]),
        (2, [200, 712, 72]),
        (4, [200, 456, 168]),
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
            let served = product::of_few(&card, sizes, x, weight, at, y)?;
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
        (2, [131, 328, 104]),
    ] {
        let card = gpu.taken_for(false, multiprocessors);
        let (y, weight) = operands(&card, [n, c, 2 * f])?;
        let (hidden, gate_up) = (unwritten(&card, n * f)?, unwritten(&card, n * 2 * f)?);
        let [y_at, w_at] = [y.address(), weight.address()];
        let served = product::swiglu_of_few(&card, [n, c, f], y_at, w_at, hidden.address())?
            && product::of_few(gpu, [n, c, 2 * f], y_at, w_at, 0, gate_up.address())?;
        let name = |what: &str| format!("swiglu within the product of {n} rows, {c} to {f}{what}");
        if !served {
            rows.push(row(name(": not served"), 1.0, 0.0));
            continue;
        }
        let sums = y.values.matmul(&weight.values.t()?.contiguous()?)?;
        rows.push(compare(
            name(": h"),
            &hidden,
            &flat(&swiglu_on_cpu(&sums)?)?,
        )?);
        let s = Sizes {
            tokens: n,
            hidden: f,
            ..NONE
        };
        let apart = unwritten(&card, n * f)?;
        kernels::swiglu_forward(&card, &s, gate_up.address(), apart.address())?;
        rows.push(same_bits(
            name(": bits that differ from a kernel after the product"),
            &hidden,
            &widened(&apart)?,
        )?);
    }
    Ok(rows)
}

/// Several tiles a block, of which none is full at the edges; fewer and more k than a block holds at once.
pub fn products_of_many(gpu: &Arc<Gpu>) -> Result<Vec<Row>> {
    let card = gpu.taken_for(false, 4);
    let mut rows = Vec::new();
    for [n, input, output] in [[1033, 712, 264], [301, 104, 408]] {
        let (x, weight) = operands(&card, [n, input, output])?;
        let across = weight.values.t()?.contiguous()?;
        let expected = x.values.matmul(&across)?;
        let (across, sizes) = (Halves::of(&card, &across)?, [n, input, output]);
        let name = |what: &str| format!("product of {n} rows in turns, {input} to {output}{what}");
        let found = unwritten(&card, n * output)?;
        let [x_at, w_at, y_at] = [x.address(), weight.address(), found.address()];
        product::of_many(&card, sizes, false, x_at, w_at, y_at)?;
        rows.push(compare(name(""), &found, &flat(&expected)?)?);
        let branch = widened(&found)?;
        let again = unwritten(&card, n * output)?;
        product::of_many(&card, sizes, true, x_at, across.address(), again.address())?;
        rows.push(same_bits(
            name(", weights the other way: bits that differ"),
            &again,
            &branch,
        )?);

        // Images of 37 rows, so that a warp's rows belong to two.
        let (tokens, stride) = (37, output + 24);
        let stream = Halves::new(&card, 4, &[n, output])?;
        let gates = Floats::new(&card, 5, &[n.div_ceil(tokens), stride])?;
        let to = Added {
            x: stream.address(),
            gate: gates.address(),
            tokens,
            stride,
        };
        let sum = unwritten(&card, n * output)?;
        product::added_to(&card, sizes, x_at, w_at, to, sum.address())?;
        let (stream, gates) = (flat(&stream.values)?, flat(&gates.values)?);
        let place = |i: usize| i / output / tokens * stride + i % output;
        let expected: Vec<f32> = (0..n * output)
            .map(|i| gates[place(i)].mul_add(branch[i], stream[i]))
            .collect();
        rows.push(same_bits(
            name(", added to the stream: bits that differ"),
            &sum,
            &expected,
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
