//! Checks matmuls: the kernels that the choice of an algorithm uses, and matmuls large enough that
//! it is made.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::check_custom::{products_of_few, products_of_many, swiglu_of_few};
use super::cublaslt::{Product, count_differing, fill_operand};
use crate::ops::cuda::compare::Row;
use crate::ops::cuda::operands::{
    ALLOWED_F32, Halves, compare, compare_f32, flat, row, unwritten, unwritten_f32,
};
use crate::ops::cuda::{Buffer, Gpu};

/// The kernels alone.
pub fn check(gpu: &Arc<Gpu>) -> Result<Vec<Row>> {
    let count = 300_001; // more than a round of all blocks
    let filled = unwritten(gpu, count)?;
    fill_operand(gpu, filled.view_mut())?;
    let values: Vec<f64> = filled.read()?.iter().map(|x| x.to_f64()).collect();
    let mean = values.iter().sum::<f64>() / count as f64;
    let square = values.iter().map(|x| x * x).sum::<f64>() / count as f64;

    let vectors = count.div_ceil(4);
    let a: Vec<u32> = (0..4 * vectors as u32).collect();
    let mut b = a.clone();
    // Two of one vector, and the last.
    for i in [4, 7, 4 * vectors - 1] {
        b[i] ^= 1 << 31;
    }
    let (a, b) = (Buffer::from_host(gpu, &a)?, Buffer::from_host(gpu, &b)?);
    let differing = Buffer::<u32>::zeros(gpu, 1)?;
    count_differing(gpu, a.view(), b.view(), differing.view_mut())?;
    let miscounted = f64::from(differing.read()?[0]) - 2.0;
    let mut rows = vec![
        row("product, operands of a trial: mean", mean.abs(), 0.02),
        row(
            "product, operands of a trial: variance less 1",
            (square - 1.0).abs(),
            0.02,
        ),
        row(
            "product, vectors that differ, miscounted",
            miscounted.abs(),
            0.0,
        ),
    ];
    if gpu.is_hopper() {
        rows.extend(products_of_few(gpu)?);
        rows.extend(swiglu_of_few(gpu)?);
        rows.extend(products_of_many(gpu)?);
    }
    Ok(rows)
}

/// Products of a layer whose algorithms are timed, against f32 on the CPU.
pub fn products(gpu: &Arc<Gpu>) -> Result<Vec<Row>> {
    // So few multiprocessors that sm_90's custom kernel takes part.
    let gpu = &gpu.taken_for(false, 8);
    let (n, input, output) = (1040, 648, 776);
    let x = Halves::new(gpu, 1, &[n, input])?;
    let weight = Halves::new(gpu, 2, &[output, input])?;
    let dy = Halves::new(gpu, 3, &[n, output])?;
    let (y, dx) = (unwritten(gpu, n * output)?, unwritten(gpu, n * input)?);
    let dweight = unwritten_f32(gpu, output * input)?;
    let matmul = gpu.matmul()?;
    let forward = Product::forward(n, input, output);
    matmul.run(gpu, &forward, x.view(), weight.view(), y.view_mut(), None)?;
    let gradient = Product::input_gradient(n, input, output);
    let to = dx.view_mut();
    matmul.run(gpu, &gradient, dy.view(), weight.view(), to, None)?;
    for accumulate in [false, true] {
        let gradient = Product {
            accumulate,
            ..Product::weight_gradient(n, input, output)
        };
        let to = dweight.view_mut();
        matmul.run(gpu, &gradient, dy.view(), x.view(), to, None)?;
    }

    let times = |a: &Tensor, b: &Tensor| flat(&a.matmul(b)?);
    let (x, weight, dy) = (&x.values, &weight.values, &dy.values);
    let once = times(&dy.t()?.contiguous()?, x)?;
    let twice: Vec<f32> = once.iter().map(|x| 2.0 * x).collect();
    let name = |what: &str| format!("products of {n} rows, {input} to {output}: {what}");
    Ok(vec![
        compare(name("y"), &y, &times(x, &weight.t()?.contiguous()?)?)?,
        compare(name("gradient of x"), &dx, &times(dy, weight)?)?,
        compare_f32(
            name("gradient of the weight, added twice"),
            &dweight,
            &twice,
            ALLOWED_F32,
        )?,
    ])
}
