use candle_core::{DType, Device, Result, Tensor};

use super::{Window, avg_pool2d, max_pool2d, reference};
use crate::ops::Padding;
use crate::ops::testing::*;

/// Kernel, stride, padding, map.
const CASES: [(usize, usize, Padding, (usize, usize)); 7] = [
    (2, 2, Padding::same(0), (6, 8)),
    (2, 2, Padding::same(0), (5, 7)),
    (3, 2, Padding::same(0), (7, 9)),
    (3, 1, Padding::same(1), (5, 7)),
    (3, 2, Padding::new(0, 1, 0, 1), (6, 5)),
    (1, 2, Padding::same(0), (3, 4)),
    (5, 5, Padding::same(0), (5, 5)),
];

fn window(x: &Tensor, kernel: usize, stride: usize, padding: Padding) -> Result<Window> {
    let (_, h, w, _) = x.dims4()?;
    Window::new("oracle", (h, w), (kernel, kernel), stride, padding)
}

#[test]
fn values_and_gradients_are_the_oracles() -> Result<()> {
    for (kernel, stride, padding, map) in CASES {
        for (batch, channels) in [(2, 3), (3, 17), (1, 1)] {
            // Rounded, so that windows contain equal maxima.
            let x = (normal(1, (batch, map.0, map.1, channels)) * 2.0)?.round()?;
            let what = format!("{kernel} stride {stride} {padding:?} on {map:?}×{channels}");
            assert_matches(
                &format!("max {what}"),
                |t| max_pool2d(&t[0], kernel, stride, padding),
                |t| reference::max_pool2d(&t[0], &window(&t[0], kernel, stride, padding)?),
                std::slice::from_ref(&x),
                1e-6,
            )?;
            assert_matches(
                &format!("average {what}"),
                |t| avg_pool2d(&t[0], kernel, stride, padding),
                |t| reference::avg_pool2d(&t[0], &window(&t[0], kernel, stride, padding)?),
                &[x],
                1e-6,
            )?;
        }
    }
    Ok(())
}

#[test]
fn the_oracles_differentiate() -> Result<()> {
    let padding = Padding::new(0, 1, 1, 0);
    let x = normal(1, (2, 5, 4, 2));
    let oracle = |t: &[Tensor]| reference::max_pool2d(&t[0], &window(&t[0], 3, 2, padding)?);
    assert_differentiates("max", oracle, std::slice::from_ref(&x))?;
    let oracle = |t: &[Tensor]| reference::avg_pool2d(&t[0], &window(&t[0], 3, 2, padding)?);
    assert_differentiates("average", oracle, &[x])
}

#[test]
fn padding_is_not_counted() -> Result<()> {
    let x = Tensor::full(-3f32, (1, 4, 4, 2), &Device::Cpu)?;
    for pooled in [
        avg_pool2d(&x, 3, 1, Padding::same(1))?,
        max_pool2d(&x, 3, 1, Padding::same(1))?,
    ] {
        assert_eq!(pooled.dims(), [1, 4, 4, 2]);
        assert!(values(&pooled).iter().all(|&y| y == -3.0));
    }
    Ok(())
}

#[test]
fn of_equal_values_the_first_takes_the_gradient() -> Result<()> {
    let x = Tensor::ones((1, 2, 2, 1), DType::F32, &Device::Cpu)?;
    let grads = with_gradients(
        |t| max_pool2d(&t[0], 2, 2, Padding::same(0)),
        &[x],
        DType::F32,
    )?;
    let upstream = values(&normal(991, 1))[0];
    assert_eq!(values(&grads[1]), [upstream, 0.0, 0.0, 0.0]);
    Ok(())
}

#[test]
fn nan_stays_nan() -> Result<()> {
    for at in 0..4 {
        let mut x = [0f32; 4];
        x[at] = f32::NAN;
        let x = Tensor::new(&x, &Device::Cpu)?.reshape((1, 2, 2, 1))?;
        let y = max_pool2d(&x, 2, 2, Padding::same(0))?;
        assert!(values(&y)[0].is_nan(), "NaN at {at} is lost");
    }
    Ok(())
}

#[test]
fn wrong_shapes_are_refused_by_name() {
    let x = normal(1, (1, 4, 4, 2));
    assert_refused(
        max_pool2d(&x, 2, 2, Padding::same(2)),
        &["max_pool2d", "smaller than the kernel"],
    );
    assert_refused(
        avg_pool2d(&x, 9, 2, Padding::same(1)),
        &["avg_pool2d", "larger than"],
    );
    assert_refused(
        avg_pool2d(&normal(1, (4, 4)), 2, 2, Padding::same(0)),
        &["avg_pool2d", "[B,H,W,C]", "[4, 4]"],
    );
}
