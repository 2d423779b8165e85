//! Checks the kernels around the generator's blocks: inputs, condition, positions, dropout, sums
//! over rows, the tally.

use std::sync::Arc;

use candle_core::Result;

use super::cuda as kernels;
use crate::ops::Dropout;
use crate::ops::cuda::compare::Row;
use crate::ops::cuda::operands::{
    ALLOWED_F32, Floats, Halves, compare, compare_f32, flat, same_bits, unwritten, unwritten_f32,
};
use crate::ops::cuda::{Buffer, Gpu};

const BATCH: usize = 5;
const TOKENS: usize = 7;
const WIDTH: usize = 264;
const LATENT: usize = 24;
const CLASSES: usize = 3;
const STEPS: usize = 4;
const LABELS: [u32; 5] = [2, 0, 3, 2, 2];
const T: [u32; 5] = [1, 4, 2, 4, 1];

pub fn check(gpu: &Arc<Gpu>) -> Result<Vec<Row>> {
    let mut rows = inputs(gpu)?;
    rows.extend(embedding(gpu)?);
    rows.extend(activations(gpu)?);
    rows.extend(row_sums(gpu)?);
    rows.extend(tally(gpu)?);
    rows.push(dropout(gpu)?);
    Ok(rows)
}

fn name(what: &str) -> String {
    format!("condition: {what}")
}

fn inputs(gpu: &Gpu) -> Result<Vec<Row>> {
    let (n, d) = (BATCH * TOKENS, LATENT);
    let (noise, sum) = (Floats::new(gpu, 1, &[n, d])?, Floats::new(gpu, 2, &[n, d])?);
    let joined = unwritten(gpu, n * 2 * d)?;
    let to = joined.view_mut();
    kernels::join_inputs(gpu, [n, d], noise.view(), sum.view(), to)?;
    let (a, b) = (flat(&noise.values)?, flat(&sum.values)?);
    let expected: Vec<f32> = a
        .chunks_exact(d)
        .zip(b.chunks_exact(d))
        .flat_map(|(a, b)| [a, b].concat())
        .collect();

    let x = Halves::new(gpu, 3, &[n, WIDTH])?;
    let position = Halves::new(gpu, 4, &[TOKENS, WIDTH])?;
    let added = flat(
        &x.values
            .reshape((BATCH, TOKENS, WIDTH))?
            .broadcast_add(&position.values)?,
    )?;
    let sizes = [BATCH, TOKENS, WIDTH];
    kernels::add_position(gpu, sizes, x.view_mut(), position.view())?;

    let t = Buffer::from_host(gpu, &T)?;
    let features = unwritten(gpu, BATCH * 256)?;
    kernels::time_features(gpu, BATCH, t.view(), features.view_mut())?;
    let angle = |t: u32, i: i32| f64::from(t) * 1e4f64.powf(-f64::from(i) / 128.0);
    let waves: Vec<f32> = T
        .iter()
        .flat_map(|&t| {
            let cosines = (0..128).map(move |i| angle(t, i).cos() as f32);
            cosines.chain((0..128).map(move |i| angle(t, i).sin() as f32))
        })
        .collect();
    Ok(vec![
        same_bits(
            name("joined inputs, share that differs"),
            &joined,
            &expected,
        )?,
        same_bits(
            name("positions added, share that differs"),
            &x.on_gpu,
            &added,
        )?,
        compare(name("time features"), &features, &waves)?,
    ])
}

/// The same elements as on the CPU, of images that end within a block of threads.
fn dropout(gpu: &Gpu) -> Result<Row> {
    let sizes = [BATCH, TOKENS, WIDTH];
    let x = Halves::new(gpu, 8, &sizes)?;
    let indices = [3, 1 << 40, 4, (5 << 32) + 1, 0];
    let on_cpu = Dropout {
        probability: 0.3,
        seed: (1 << 63) + 9,
        indices: &indices,
    };
    // The CPU's product with 0 is −0 for what is negative, and the sum with 0 is 0.
    let expected = flat(&(on_cpu.apply(&x.values, 2)? + 0.0)?)?;
    let numbers = Buffer::from_host(gpu, &indices)?;
    let by = kernels::DropoutOnGpu {
        probability: on_cpu.probability,
        seed: on_cpu.seed,
        indices: numbers.view(),
    };
    kernels::dropout(gpu, sizes, x.view_mut(), 2, by)?;
    same_bits(name("dropout: bits that differ"), &x.on_gpu, &expected)
}

fn embedding(gpu: &Gpu) -> Result<Vec<Row>> {
    let (b, c, sizes) = (BATCH, WIDTH, [BATCH, WIDTH, CLASSES]);
    let time = Floats::new(gpu, 5, &[b, c])?;
    let table = Floats::new(gpu, 6, &[CLASSES + 1, c])?;
    let labels = Buffer::from_host(gpu, &LABELS)?;
    let (sum, out) = (unwritten_f32(gpu, b * c)?, unwritten(gpu, b * c)?);
    kernels::condition(
        gpu,
        sizes,
        time.view(),
        table.view(),
        labels.view(),
        sum.view_mut(),
        out.view_mut(),
    )?;
    let (time, table) = (flat(&time.values)?, flat(&table.values)?);
    let of_label = |i: usize| table[LABELS[i / c] as usize * c + i % c];
    let sums: Vec<f32> = (0..b * c).map(|i| time[i] + of_label(i)).collect();
    let silus: Vec<f32> = sums.iter().map(|&x| silu(x)).collect();

    let d = Halves::new(gpu, 7, &[b, c])?;
    let gradient = unwritten_f32(gpu, (CLASSES + 1) * c)?;
    for accumulate in [false, true] {
        kernels::embedding_gradient(
            gpu,
            sizes,
            d.view(),
            labels.view(),
            gradient.view_mut(),
            accumulate,
        )?;
    }
    let mut twice = vec![0f32; (CLASSES + 1) * c];
    for (i, d) in flat(&d.values)?.iter().enumerate() {
        twice[LABELS[i / c] as usize * c + i % c] += 2.0 * d;
    }
    Ok(vec![
        compare_f32(name("time and label"), &sum, &sums, 0.0)?,
        compare(name("their SiLU"), &out, &silus)?,
        compare_f32(
            name("gradient of the embedding, added twice"),
            &gradient,
            &twice,
            ALLOWED_F32,
        )?,
    ])
}

fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

fn activations(gpu: &Gpu) -> Result<Vec<Row>> {
    let count = BATCH * WIDTH;
    let (x, dy) = (
        Floats::new(gpu, 8, &[count])?,
        Floats::new(gpu, 9, &[count])?,
    );
    let (y, dx) = (unwritten(gpu, count)?, unwritten(gpu, count)?);
    kernels::silu(gpu, count, x.view(), y.view_mut())?;
    kernels::silu_gradient(gpu, count, dy.view(), x.view(), dx.view_mut())?;
    let (x, dy) = (flat(&x.values)?, flat(&dy.values)?);
    let slope = |x: f32| {
        let sigmoid = 1.0 / (1.0 + (-x).exp());
        sigmoid * (1.0 + x * (1.0 - sigmoid))
    };
    let silus: Vec<f32> = x.iter().map(|&x| silu(x)).collect();
    let slopes: Vec<f32> = x.iter().zip(&dy).map(|(&x, dy)| dy * slope(x)).collect();
    Ok(vec![
        compare(name("SiLU"), &y, &silus)?,
        compare(name("gradient of SiLU"), &dx, &slopes)?,
    ])
}

/// More rows than a block adds up.
fn row_sums(gpu: &Gpu) -> Result<Vec<Row>> {
    let (rows, columns) = (261, 267);
    let x = Halves::new(gpu, 10, &[rows, columns])?;
    let scratch = unwritten_f32(gpu, kernels::row_sums_scratch(rows, columns))?;
    let out = unwritten_f32(gpu, columns)?;
    for accumulate in [false, true] {
        kernels::row_sums(
            gpu,
            [rows, columns],
            x.view(),
            scratch.view_mut(),
            out.view_mut(),
            accumulate,
        )?;
    }
    let twice = (x.values.to_dtype(candle_core::DType::F64)?.sum(0)? * 2.0)?;
    let twice = flat(&twice.to_dtype(candle_core::DType::F32)?)?;
    Ok(vec![compare_f32(
        name("sums over rows, added twice"),
        &out,
        &twice,
        ALLOWED_F32,
    )?])
}

fn tally(gpu: &Gpu) -> Result<Vec<Row>> {
    let n = 259;
    let loss = Floats::new(gpu, 11, &[BATCH * n])?;
    let hits: Vec<u32> = (0..BATCH * n).map(|i| (i % 3 == 0).into()).collect();
    let there = Buffer::from_host(gpu, &hits)?;
    let t = Buffer::from_host(gpu, &T)?;
    let sums = unwritten_f32(gpu, BATCH * 2)?;
    let so_far: Vec<f32> = (0..STEPS * 3).map(|i| i as f32).collect();
    let tally = Buffer::from_host(gpu, &so_far)?;
    kernels::tally(
        gpu,
        [BATCH, n, STEPS],
        loss.view(),
        there.view(),
        t.view(),
        sums.view_mut(),
        tally.view_mut(),
    )?;
    let mut expected: Vec<f64> = so_far.iter().map(|&x| x.into()).collect();
    for (i, (loss, hit)) in flat(&loss.values)?.iter().zip(&hits).enumerate() {
        let row = &mut expected[(T[i / n] as usize - 1) * 3..][..3];
        row[0] += 1.0;
        row[1] += f64::from(*loss);
        row[2] += f64::from(*hit);
    }
    let expected: Vec<f32> = expected.iter().map(|&x| x as f32).collect();
    Ok(vec![compare_f32(
        name("tally"),
        &tally,
        &expected,
        ALLOWED_F32,
    )?])
}
