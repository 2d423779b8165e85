use candle_core::{DType, Device, Result, Tensor, Var};

use super::{Window, conv2d, conv2d_packed, conv2d_weight_grad, reference};
use crate::ops::testing::*;
use crate::ops::{Packed, Padding, blocks};

/// Kernel, stride, padding, map.
type Case = ((usize, usize), usize, Padding, (usize, usize));

/// The cases of the models and metrics, and odder ones.
const CASES: [Case; 14] = [
    ((1, 1), 1, Padding::same(0), (5, 7)),
    ((1, 1), 2, Padding::same(0), (5, 7)),
    ((1, 1), 1, Padding::new(0, 1, 2, 0), (3, 4)),
    ((3, 3), 1, Padding::same(1), (5, 7)),
    ((3, 3), 2, Padding::new(0, 1, 0, 1), (6, 7)),
    ((3, 3), 2, Padding::same(1), (8, 5)),
    ((3, 3), 3, Padding::same(0), (7, 11)),
    ((4, 4), 2, Padding::same(1), (7, 9)),
    ((4, 4), 1, Padding::same(1), (5, 4)),
    ((1, 7), 1, Padding::new(0, 0, 3, 3), (4, 9)),
    ((7, 1), 1, Padding::new(3, 3, 0, 0), (9, 4)),
    ((5, 5), 1, Padding::same(2), (3, 2)),
    ((3, 3), 5, Padding::same(1), (7, 11)),
    ((14, 14), 14, Padding::same(0), (28, 30)),
];

#[test]
fn frozen_weights_give_the_relu_of_the_same_convolution() -> Result<()> {
    for (kernel, stride, padding, (h, w)) in CASES {
        let x = normal(1, (3, h, w, 5));
        let weight = normal(2, (6, 5, kernel.0, kernel.1));
        let bias = normal(3, 6);
        let frozen = super::FrozenConv2d::new(&weight, &bias, stride, padding)?;
        let expected = crate::ops::relu(&conv2d(&x, &weight, Some(&bias), stride, padding)?)?;
        let same = frozen.relu(&x)?.flatten_all()?.to_vec1::<f32>()?
            == expected.flatten_all()?.to_vec1::<f32>()?;
        assert!(same, "{kernel:?} {stride} {padding:?}");
    }
    Ok(())
}

fn oracle(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    stride: usize,
    padding: Padding,
) -> Result<Tensor> {
    let (_, h, w, _) = x.dims4()?;
    let (_, _, kh, kw) = weight.dims4()?;
    let window = Window::new("oracle", (h, w), (kh, kw), stride, padding)?;
    reference::conv2d(x, weight, bias, &window)
}

#[test]
fn values_and_gradients_are_the_oracles() -> Result<()> {
    for (i, (kernel, stride, padding, map)) in CASES.into_iter().enumerate() {
        for (batch, channels, outputs) in [(2, 3, 5), (1, 8, 1), (3, 1, 16)] {
            let x = normal(i as u64, (batch, map.0, map.1, channels));
            let weight = normal(100, (outputs, channels, kernel.0, kernel.1));
            let bias = normal(200, outputs);
            let what = format!("{kernel:?} stride {stride} {padding:?} on {map:?}");
            assert_matches(
                &what,
                |t| conv2d(&t[0], &t[1], Some(&t[2]), stride, padding),
                |t| oracle(&t[0], &t[1], Some(&t[2]), stride, padding),
                &[x.clone(), weight.clone(), bias],
                1e-5,
            )?;
            assert_matches(
                &format!("{what} without bias"),
                |t| conv2d(&t[0], &t[1], None, stride, padding),
                |t| oracle(&t[0], &t[1], None, stride, padding),
                &[x, weight],
                1e-5,
            )?;
        }
    }
    Ok(())
}

/// Deep enough for several calls of `gemm` per block, and several chunks and groups of the weight
/// gradient.
#[test]
fn large_sums_are_the_oracles() -> Result<()> {
    let (x, weight) = (normal(1, (3, 19, 17, 70)), normal(2, (150, 70, 3, 3)));
    assert_matches(
        "70 to 150 channels",
        |t| conv2d(&t[0], &t[1], Some(&t[2]), 1, Padding::same(1)),
        |t| oracle(&t[0], &t[1], Some(&t[2]), 1, Padding::same(1)),
        &[x, weight, normal(3, 150)],
        1e-5,
    )
}

#[test]
fn the_oracle_is_candles_convolution_and_differentiates() -> Result<()> {
    let (x, weight, bias) = (
        normal(1, (2, 5, 5, 3)),
        normal(2, (4, 3, 3, 3)),
        normal(3, 4),
    );
    let candles = x
        .permute((0, 3, 1, 2))?
        .contiguous()?
        .conv2d(&weight, 1, 2, 1, 1)?
        .permute((0, 2, 3, 1))?
        .broadcast_add(&bias)?;
    let padding = Padding::same(1);
    let ours = oracle(&x, &weight, Some(&bias), 2, padding)?;
    assert_close("stride 2", &ours, &candles, 1e-6);
    assert_differentiates(
        "the oracle",
        |t| oracle(&t[0], &t[1], Some(&t[2]), 2, Padding::new(0, 1, 2, 0)),
        &[
            normal(4, (2, 4, 5, 2)),
            normal(5, (3, 2, 3, 2)),
            bias.narrow(0, 0, 3)?,
        ],
    )
}

#[test]
fn the_weights_gradient_alone_is_the_whole_ones() -> Result<()> {
    for (kernel, stride, padding, map) in CASES {
        let x = normal(1, (2, map.0, map.1, 3));
        let weight = Var::from_tensor(&normal(2, (5, 3, kernel.0, kernel.1)))?;
        let y = conv2d(&x, &weight, None, stride, padding)?;
        let grad = normal(3, y.shape());
        let grads = (&y * &grad)?.sum_all()?.backward()?;
        let alone = conv2d_weight_grad(&x, &grad, kernel, stride, padding)?;
        let whole = grads.get(&weight).expect("a gradient for the weight");
        assert_close("dw", &alone, whole, 0.0);
    }
    Ok(())
}

/// What a GPU computes behind an upsampling: each tap of the small map's 4×4 gradient belongs to
/// the taps whose sum it meets.
#[test]
fn behind_an_upsampling_the_weights_gradient_is_folded() -> Result<()> {
    let (x, dy) = (normal(1, (2, 5, 3, 6)), normal(2, (2, 10, 6, 4)));
    let doubled = crate::ops::upsample_nearest2x(&x)?;
    let expected = conv2d_weight_grad(&doubled, &dy, (3, 3), 1, Padding::same(1))?;
    let folded = conv2d_weight_grad(&dy, &x, (4, 4), 2, Padding::same(1))?; // [I,O,4,4]
    let mut taps = Vec::new();
    for (r, s) in (0..9).map(|tap| (tap / 3, tap % 3)) {
        let four = folded.narrow(2, 2 - r, 2)?.narrow(3, 2 - s, 2)?;
        taps.push(four.sum(3)?.sum(2)?.t()?);
    }
    let found = Tensor::stack(&taps, 2)?.reshape((4, 6, 3, 3))?;
    assert_close("gradient", &found, &expected, 1e-5);
    Ok(())
}

#[test]
fn untracked_inputs_get_no_gradient() -> Result<()> {
    let (x, weight, bias) = (
        normal(1, (2, 5, 7, 3)),
        normal(2, (4, 3, 3, 3)),
        normal(3, 4),
    );
    let tracked = Var::from_tensor(&x)?;
    let frozen = conv2d(&tracked, &weight, Some(&bias), 1, Padding::same(1))?;
    let grads = frozen.backward()?;
    assert!(grads.get(&tracked).is_some());
    assert!(grads.get(&weight).is_none() && grads.get(&bias).is_none());

    let tracked = Var::from_tensor(&weight)?;
    let first = conv2d(&x, &tracked, Some(&bias), 1, Padding::same(1))?;
    let grads = first.backward()?;
    assert!(grads.get(&tracked).is_some());
    assert!(grads.get(&x).is_none() && grads.get(&bias).is_none());
    Ok(())
}

#[test]
fn an_image_has_the_same_bits_in_every_batch() -> Result<()> {
    let sizes = [
        ((3, 3), 1, (4, 4), 64, 64),
        ((3, 3), 1, (9, 7), 3, 128),
        ((4, 4), 2, (16, 16), 20, 33),
        ((1, 1), 1, (1, 1), 600, 5),
        ((3, 3), 1, (8, 8), 130, 3),
        ((3, 3), 1, (5, 5), 16, 1),
    ];
    for (kernel, stride, map, channels, outputs) in sizes {
        let padding = Padding::same(kernel.0 / 2);
        let x = normal(1, (64, map.0, map.1, channels));
        let weight = normal(2, (outputs, channels, kernel.0, kernel.1));
        let bias = normal(3, outputs);
        let run = |batch: usize, threads: usize| -> Result<Vec<Tensor>> {
            on_threads(threads, || {
                let x = Var::from_tensor(&x.narrow(0, 64 - batch, batch)?)?;
                let y = conv2d(&x, &weight, Some(&bias), stride, padding)?;
                let last = y.narrow(0, batch - 1, 1)?.detach();
                let grads = y.sqr()?.backward()?;
                let grad = grads.get(&x).expect("a gradient for x");
                Ok(vec![last, grad.narrow(0, batch - 1, 1)?])
            })
        };
        let alone = run(1, 1)?;
        for (batch, threads) in [(1, 3), (2, 1), (7, 2), (64, 3)] {
            for (alone, among) in alone.iter().zip(run(batch, threads)?) {
                let equal = bits(alone) == bits(&among);
                assert!(equal, "{kernel:?} {channels}→{outputs}, batch {batch}");
            }
        }
    }
    Ok(())
}

#[test]
fn the_weights_gradient_has_the_same_bits_on_any_number_of_threads() -> Result<()> {
    let (x, grad) = (normal(1, (5, 20, 20, 32)), normal(2, (5, 20, 20, 140)));
    let run = |threads| {
        on_threads(threads, || {
            conv2d_weight_grad(&x, &grad, (3, 3), 1, Padding::same(1))
        })
    };
    let once = bits(&run(1)?);
    assert!(once == bits(&run(2)?) && once == bits(&run(5)?));
    Ok(())
}

#[test]
fn a_strided_view_is_taken_as_it_reads() -> Result<()> {
    let x = normal(1, (2, 3, 5, 7)); // [B,C,H,W]
    let weight = normal(2, (4, 3, 3, 3));
    let view = x.permute((0, 2, 3, 1))?;
    let from_view = conv2d(&view, &weight, None, 1, Padding::same(1))?;
    let from_copy = conv2d(&view.contiguous()?, &weight, None, 1, Padding::same(1))?;
    assert_eq!(bits(&from_view), bits(&from_copy));
    Ok(())
}

#[test]
fn wrong_shapes_are_refused_by_name() -> Result<()> {
    let conv = |x: &[usize], weight: &[usize], bias: usize, stride, padding| {
        conv2d(
            &normal(1, x),
            &normal(2, weight),
            Some(&normal(3, bias)),
            stride,
            padding,
        )
    };
    let same = Padding::same(1);
    assert_refused(
        conv(&[1, 4, 4, 3], &[8, 4, 3, 3], 8, 1, same),
        &["conv2d", "takes 4 channels", "has 3"],
    );
    assert_refused(conv(&[4, 4, 3], &[8, 3, 3, 3], 8, 1, same), &["[B,H,W,C]"]);
    assert_refused(
        conv(&[1, 4, 4, 3], &[8, 3, 9], 8, 1, same),
        &["[O,I,kh,kw]"],
    );
    assert_refused(
        conv(&[1, 4, 4, 3], &[8, 3, 3, 3], 3, 1, same),
        &["bias", "[8]"],
    );
    assert_refused(
        conv(&[1, 4, 4, 3], &[8, 3, 7, 3], 8, 1, same),
        &["larger than"],
    );
    assert_refused(
        conv(&[1, 4, 4, 3], &[8, 3, 3, 3], 8, 0, same),
        &["at least 1"],
    );
    assert_refused(
        conv(&[0, 4, 4, 3], &[8, 3, 3, 3], 8, 1, same),
        &["no elements"],
    );
    let (x, grad) = (normal(1, (1, 4, 4, 3)), normal(2, (1, 3, 3, 8)));
    assert_refused(
        conv2d_weight_grad(&x, &grad, (3, 3), 1, same),
        &["conv2d_weight_grad", "(1, 4, 4)", "[1, 3, 3, 8]"],
    );
    Ok(())
}

#[test]
fn other_types_take_the_oracle() -> Result<()> {
    let x = normal(1, (1, 4, 4, 3)).to_dtype(DType::F64)?;
    let weight = Tensor::ones((2, 3, 3, 3), DType::F64, &Device::Cpu)?;
    let y = conv2d(&x, &weight, None, 1, Padding::same(1))?;
    assert_eq!(y.dtype(), DType::F64);
    Ok(())
}

#[test]
fn winograd_gives_the_convolution_and_an_image_the_same_bits_in_every_batch() -> Result<()> {
    // Maps whose lines of tiles are processed one, two and four at a time; the first has more tiles
    // in a line than are otherwise processed together.
    for (h, w, i, o) in [
        (4, 72, 16, 32),
        (24, 24, 32, 16),
        (16, 16, 16, 16),
        (64, 64, 16, 16),
    ] {
        let (x, weight) = (normal(1, (3, h, w, i)), normal(2, (o, i, 3, 3)));
        let bias = normal(3, o);
        let convolve = |x: &Tensor, packed: Packed| {
            conv2d_packed(x, &weight, Some(&bias), 1, Padding::same(1), Some(&packed))
        };
        let found = convolve(&x, Packed::for_winograd())?;
        let expected = convolve(&x, Packed::default())?;
        let norm = |x: &Tensor| x.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>();
        let error = norm(&(&found - &expected)?)? / norm(&expected)?;
        assert!(error < 3e-6, "{h}x{w}, {i} to {o}: {error:e}");
        assert!(error > 0.0, "{h}x{w}: computed directly");
        for threads in [1, 2, 5] {
            let again = on_threads(threads, || convolve(&x, Packed::for_winograd()))?;
            assert!(bits(&again) == bits(&found), "{threads} threads");
        }
        for b in 0..3 {
            let alone = x.narrow(0, b, 1)?.contiguous()?;
            let alone = blocks::serially(|| convolve(&alone, Packed::for_winograd()))?;
            assert!(bits(&alone) == bits(&found.narrow(0, b, 1)?), "image {b}");
        }
    }
    Ok(())
}
