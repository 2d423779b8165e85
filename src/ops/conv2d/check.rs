//! Checks convolutions of odd sizes: kernels, strides and paddings of all networks here, with
//! channels that do and do not fill vectors.

use candle_core::{DType, Device, Result, Tensor, Var};

use super::{HeldWeights, conv2d, conv2d_add, conv2d_packed, conv2d_relu, upsampled_conv2d};
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::{Row, compare, random, relative};
use crate::ops::tape::plain;
use crate::ops::{Packed, Padding, Tape};

/// (B, H, W, I, O, kh, kw, stride, padding)
type Case = (
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    Padding,
);

const CASES: [Case; 30] = [
    (2, 7, 9, 64, 72, 3, 3, 1, Padding::same(1)),
    (3, 8, 8, 96, 64, 3, 3, 1, Padding::same(1)),
    (1, 13, 6, 128, 128, 3, 3, 1, Padding::same(1)),
    (2, 16, 16, 192, 256, 3, 3, 1, Padding::same(1)),
    (2, 9, 7, 64, 64, 3, 3, 2, Padding::new(0, 1, 0, 1)),
    (2, 10, 12, 128, 96, 3, 3, 2, Padding::new(0, 1, 0, 1)),
    (1, 11, 11, 40, 48, 3, 3, 2, Padding::same(0)),
    (2, 8, 10, 64, 128, 4, 4, 2, Padding::same(1)),
    (1, 9, 9, 128, 64, 4, 4, 1, Padding::same(1)),
    (2, 5, 7, 64, 40, 1, 1, 1, Padding::same(0)),
    (2, 17, 17, 64, 64, 1, 7, 1, Padding::new(0, 0, 3, 3)),
    (2, 17, 17, 64, 64, 7, 1, 1, Padding::new(3, 3, 0, 0)),
    (1, 12, 12, 48, 64, 5, 5, 1, Padding::same(2)),
    (2, 9, 12, 3, 64, 3, 3, 1, Padding::same(1)),
    (2, 9, 12, 64, 3, 3, 3, 1, Padding::same(1)),
    (2, 9, 12, 64, 1, 4, 4, 1, Padding::same(1)),
    // Lines longer than a warp's chunk, every second pixel, tiles side by side.
    (1, 5, 150, 3, 72, 3, 3, 1, Padding::same(1)),
    (1, 20, 142, 3, 64, 4, 4, 2, Padding::same(1)),
    (1, 39, 75, 3, 96, 3, 3, 2, Padding::new(0, 1, 0, 1)),
    (2, 19, 67, 72, 3, 3, 3, 1, Padding::same(1)),
    // Lines of 16, 32 and 64 positions, of which a weight gradient's boxes hold whole ones.
    (2, 16, 16, 96, 96, 3, 3, 1, Padding::same(1)),
    (1, 5, 32, 64, 72, 3, 3, 1, Padding::same(1)),
    (1, 3, 128, 72, 64, 3, 3, 1, Padding::same(1)),
    (1, 31, 31, 64, 96, 4, 4, 1, Padding::same(1)),
    // A weight gradient of three products of two taps each.
    (2, 6, 10, 192, 96, 4, 4, 1, Padding::same(1)),
    // Few channels, by each of the kernels for them.
    (2, 9, 37, 1, 40, 3, 3, 1, Padding::same(1)),
    (1, 21, 70, 3, 64, 3, 3, 2, Padding::new(0, 1, 0, 1)),
    (1, 11, 37, 3, 64, 4, 4, 1, Padding::same(1)),
    (1, 11, 37, 3, 96, 4, 4, 1, Padding::same(1)),
    (1, 22, 70, 3, 72, 4, 4, 2, Padding::same(1)),
];

pub fn check(gpu: &Gpu) -> Result<Vec<Row>> {
    let mut rows = fused(gpu)?;
    rows.extend(super::check_norms::check(gpu)?);
    if gpu.is_hopper() {
        rows.extend(super::check_cuts::check(gpu)?);
    }
    rows.extend(held(gpu)?);
    for (b, h, w, i, o, kh, kw, stride, padding) in CASES {
        let name = format!("conv2d {b}×{h}×{w}, {i} to {o}, {kh}×{kw}, stride {stride}");
        let maps = [random(1, &[b, h, w, i])?];
        let scale = 1.0 / ((i * kh * kw) as f64).sqrt();
        let weights = [(random(2, &[o, i, kh, kw])? * scale)?, random(3, &[o])?];
        rows.extend(compare(gpu, &name, &maps, &weights, |maps, weights| {
            conv2d(&maps[0], &weights[0], Some(&weights[1]), stride, padding)
        })?);
    }
    Ok(rows)
}

/// Operations fused into a convolution, at sizes that a kernel does and does not support.
fn fused(gpu: &Gpu) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (b, h, w, i, o) in [
        (2, 8, 8, 64, 64),
        (1, 7, 9, 96, 128),
        (2, 16, 16, 128, 64),
        (1, 5, 6, 40, 24),
        (1, 5, 6, 40, 56),
        (2, 8, 12, 64, 256),
        (2, 9, 11, 3, 64),
    ] {
        let scale = 1.0 / ((i * 9) as f64).sqrt();
        let weights = [
            in_bf16((random(2, &[o, i, 3, 3])? * scale)?)?,
            random(3, &[o])?,
        ];
        let maps = [random(1, &[b, h, w, i])?, random(4, &[b, h, w, o])?];
        let name = format!("{b}×{h}×{w}, {i} to {o}");
        let same = Padding::same(1);
        rows.extend(compare(
            gpu,
            &format!("conv2d_add {name}"),
            &maps,
            &weights,
            |maps, weights| {
                conv2d_add(
                    &maps[1],
                    &maps[0],
                    &weights[0],
                    Some(&weights[1]),
                    1,
                    same,
                    None,
                )
            },
        )?);
        rows.extend(compare(
            gpu,
            &format!("upsampled_conv2d {name}"),
            &maps[..1],
            &weights,
            |maps, weights| upsampled_conv2d(&maps[0], &weights[0], Some(&weights[1]), None),
        )?);
        for slope in [0.0, 0.2] {
            rows.extend(compare(
                gpu,
                &format!("conv2d_relu {name}, slope {slope}"),
                &maps[..1],
                &weights,
                |maps, weights| {
                    conv2d_relu(
                        &maps[0],
                        &weights[0],
                        Some(&weights[1]),
                        1,
                        same,
                        slope,
                        None,
                    )
                },
            )?);
            // What comes next passes its gradient through the ReLU.
            for (kernel, stride) in [(3, 1), (4, 2)] {
                let scale = 1.0 / ((o * kernel * kernel) as f64).sqrt();
                let next = in_bf16((random(5, &[72, o, kernel, kernel])? * scale)?)?;
                let weights = [weights[0].clone(), weights[1].clone(), next];
                rows.extend(compare(
                    gpu,
                    &format!("conv2d_relu {name}, slope {slope}, before {kernel}×{kernel}"),
                    &maps[..1],
                    &weights,
                    |maps, weights| {
                        let (weight, bias) = (&weights[0], Some(&weights[1]));
                        let y = conv2d_relu(&maps[0], weight, bias, 1, same, slope, None)?;
                        conv2d(&y, &weights[2], None, stride, same)
                    },
                )?);
            }
        }
    }
    Ok(rows)
}

/// Weights (O, I, kh, kw) that are packed by every variant of the kernel, and one that is not.
const HELD: [[usize; 4]; 7] = [
    [40, 32, 1, 1],
    [96, 136, 1, 1],
    [64, 40, 3, 3],
    [72, 264, 3, 3],
    [48, 56, 4, 4],
    [32, 40, 5, 2],
    [64, 3, 3, 3],
];

/// Convolutions by copies of weights that are held, or kept by a frozen layer, against the same
/// without: the same bits, and after a change of the weights the new ones'.
fn held(gpu: &Gpu) -> Result<Vec<Row>> {
    let device = Device::Cuda(gpu.device().clone());
    let there = |t: Tensor| t.to_device(&device);
    let weights = HELD
        .iter()
        .zip(40..)
        .map(|(shape, seed)| Var::from_tensor(&there((random(seed, shape)? * 0.1)?)?))
        .collect::<Result<Vec<_>>>()?;
    // Value and gradient of the map by every weight, also behind an upsampling where it is 3×3.
    let passes = |frozen: &[Packed]| -> Result<Vec<Tensor>> {
        let mut all = Vec::new();
        for (n, (weight, &[o, i, kh, kw])) in weights.iter().zip(&HELD).enumerate() {
            let packed = frozen.get(n);
            let map = there(random(50, &[2, 6, 8, i])?)?.to_dtype(DType::BF16)?;
            let bias = there(random(51, &[o])?)?;
            for upsampled in [false, true] {
                if upsampled && (kh, kw) != (3, 3) {
                    continue;
                }
                let (x, tape) = (Var::from_tensor(&map)?, Tape::start());
                let y = match upsampled {
                    false => conv2d_packed(&x, weight, Some(&bias), 1, Padding::same(1), packed)?,
                    true => upsampled_conv2d(&x, weight, Some(&bias), packed)?,
                };
                all.push(y.detach());
                let loss = plain([&y], |[y]| y.to_dtype(DType::F32)?.sqr()?.sum_all())?;
                all.extend(tape.backward(loss)?.remove(&x));
            }
        }
        Ok(all)
    };
    let difference = |found: &[Tensor], expected: &[Tensor]| -> Result<f64> {
        let mut sum = (found.len() as f64 - expected.len() as f64).abs();
        for (found, expected) in found.iter().zip(expected) {
            sum += relative(found, expected)?;
        }
        Ok(sum)
    };
    let mut rows = Vec::new();
    for time in ["at first", "after a change"] {
        let expected = passes(&[])?;
        let held = {
            let _held = HeldWeights::new(&weights)?;
            passes(&[])?
        };
        let copies = [(); HELD.len()].map(|()| Packed::default());
        let (first, second) = (passes(&copies)?, passes(&copies)?);
        for (name, found) in [
            ("held weights", held),
            ("frozen weights", first),
            ("frozen weights again", second),
        ] {
            rows.push(Row {
                name: format!("conv2d, {name} {time}"),
                error: difference(&found, &expected)?,
                allowed: 0.0,
            });
        }
        for weight in &weights {
            weight.set(&(weight.as_detached_tensor() * 0.5)?)?;
        }
    }
    Ok(rows)
}

/// Values that bf16 can represent: if the weights were rounded, a ReLU would cut other values than
/// the reference's.
fn in_bf16(x: Tensor) -> Result<Tensor> {
    x.to_dtype(DType::BF16)?.to_dtype(DType::F32)
}
