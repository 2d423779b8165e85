//! Checks sm_90's custom matmuls: of few rows, each kernel by a size and a number of
//! multiprocessors for which it is the one chosen; and of many.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::cuda::{self as product, Added};
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::Row;
use crate::ops::cuda::operands::{
    Floats, Halves, compare, flat, row, same_bits, unwritten, widened,
};
use crate::ops::swiglu::{cuda::swiglu_forward, swiglu as swiglu_on_cpu};

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
        let few = gpu.taken_for(false, multiprocessors);
        let (x, weight) = operands(&few, [n, input, output])?;
        let bias = Halves::new(&few, 3, &[output])?;
        let y = x.values.matmul(&weight.values.t()?.contiguous()?)?;
        let name = |what: &str| format!("product of {n} rows, {input} to {output}{what}");
        for (what, bias, expected) in [
            ("", None, flat(&y)?),
            (
                ", and a bias",
                Some(bias.view()),
                flat(&y.broadcast_add(&bias.values)?)?,
            ),
        ] {
            let found = unwritten(&few, n * output)?;
            let sizes = [n, input, output];
            let (x, weight, y) = (x.view(), weight.view(), found.view_mut());
            let served = product::of_few(&few, sizes, x, weight, bias, y)?;
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
        let few = gpu.taken_for(false, multiprocessors);
        let (y, weight) = operands(&few, [n, c, 2 * f])?;
        let (hidden, gate_up) = (unwritten(&few, n * f)?, unwritten(&few, n * 2 * f)?);
        let (y_at, w_at) = (y.view(), weight.view());
        let served = product::swiglu_of_few(&few, [n, c, f], y_at, w_at, hidden.view_mut())?
            && product::of_few(gpu, [n, c, 2 * f], y_at, w_at, None, gate_up.view_mut())?;
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
        let apart = unwritten(&few, n * f)?;
        swiglu_forward(&few, [n, f], gate_up.view(), apart.view_mut())?;
        rows.push(same_bits(
            name(": bits that differ from a kernel after the product"),
            &hidden,
            &widened(&apart)?,
        )?);
    }
    Ok(rows)
}

/// Several tiles a block, of which none is full at the edges; fewer and more k than a block holds
/// at once.
pub fn products_of_many(gpu: &Arc<Gpu>) -> Result<Vec<Row>> {
    let few = gpu.taken_for(false, 4);
    let mut rows = Vec::new();
    for [n, input, output] in [[1033, 712, 264], [301, 104, 408]] {
        let (x, weight) = operands(&few, [n, input, output])?;
        let across = weight.values.t()?.contiguous()?;
        let expected = x.values.matmul(&across)?;
        let (across, sizes) = (Halves::of(&few, &across)?, [n, input, output]);
        let name = |what: &str| format!("product of {n} rows in turns, {input} to {output}{what}");
        let found = unwritten(&few, n * output)?;
        let (x_at, w_at) = (x.view(), weight.view());
        product::of_many(&few, sizes, false, x_at, w_at, found.view_mut())?;
        rows.push(compare(name(""), &found, &flat(&expected)?)?);
        let branch = widened(&found)?;
        let again = unwritten(&few, n * output)?;
        product::of_many(&few, sizes, true, x_at, across.view(), again.view_mut())?;
        rows.push(same_bits(
            name(", weights the other way: bits that differ"),
            &again,
            &branch,
        )?);

        // Images of 37 rows, so that a warp's rows belong to two.
        let (tokens, stride) = (37, output + 24);
        let stream = Halves::new(&few, 4, &[n, output])?;
        let gates = Floats::new(&few, 5, &[n.div_ceil(tokens), stride])?;
        let to = Added {
            x: stream.view(),
            gate: gates.view(),
            tokens,
            stride,
        };
        let sum = unwritten(&few, n * output)?;
        product::added_to(&few, sizes, x_at, w_at, to, sum.view_mut())?;
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
