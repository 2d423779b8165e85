use super::{group_norm, reference};
use crate::ops::Activation;
use crate::ops::testing::{
    assert_matches, assert_refused, bits, normal, on_threads, with_gradients,
};
use candle_core::{DType, Result, Tensor};

fn inputs(b: usize, h: usize, w: usize, c: usize) -> Result<Vec<Tensor>> {
    Ok(vec![
        ((normal(1, (b, h, w, c)) * 2.0)? + 5.0)?,
        (normal(2, c) + 1.0)?,
        normal(3, c),
    ])
}

#[test]
fn matches_the_oracle_in_value_and_gradient() -> Result<()> {
    for (b, h, w, c, groups) in [
        (2, 5, 7, 96, 32),
        (1, 3, 2, 6, 3),
        (3, 1, 1, 64, 4),
        (2, 37, 23, 64, 32),
    ] {
        for activation in [
            Activation::None,
            Activation::Silu,
            Activation::LeakyRelu(0.2),
        ] {
            assert_matches(
                &format!("group_norm {c} in {groups}, {activation:?}"),
                |x| group_norm(&x[0], &x[1], &x[2], groups, 1e-6, activation),
                |x| reference::group_norm(&x[0], &x[1], &x[2], groups, 1e-6, activation),
                &inputs(b, h, w, c)?,
                4e-6,
            )?;
        }
    }
    Ok(())
}

#[test]
fn a_large_mean_leaves_the_variance_right() -> Result<()> {
    // Computing E[x²] − E[x]² would lose all digits: the mean is 1000 standard deviations.
    let x = (normal(1, (1, 40, 40, 32)) + 1000.0)?;
    let (one, zero) = (normal(2, 32).ones_like()?, normal(2, 32).zeros_like()?);
    let y = group_norm(&x, &one, &zero, 8, 1e-6, Activation::None)?;
    let x = x.to_dtype(DType::F64)?;
    let (one, zero) = (one.to_dtype(DType::F64)?, zero.to_dtype(DType::F64)?);
    let exact = reference::group_norm(&x, &one, &zero, 8, 1e-6, Activation::None)?;
    crate::ops::testing::assert_close("group_norm far from 0", &y, &exact, 2e-5);
    Ok(())
}

#[test]
fn an_image_does_not_depend_on_the_others_or_the_threads() -> Result<()> {
    let x = inputs(7, 20, 30, 64)?;
    let norm = |x: &Tensor, w: &Tensor, b: &Tensor| group_norm(x, w, b, 32, 1e-6, Activation::Silu);
    let all = on_threads(3, || norm(&x[0], &x[1], &x[2]))?;
    for b in [0, 6] {
        let alone = on_threads(1, || norm(&x[0].narrow(0, b, 1)?, &x[1], &x[2]))?;
        assert_eq!(bits(&alone), bits(&all.narrow(0, b, 1)?));
    }
    let run = |threads| {
        let norm = |x: &[Tensor]| norm(&x[0], &x[1], &x[2]);
        on_threads(threads, || with_gradients(norm, &x, DType::F32))
    };
    for (one, three) in run(1)?.iter().zip(run(3)?.iter()) {
        assert_eq!(bits(one), bits(three));
    }
    Ok(())
}

#[test]
fn frozen_parameters_get_no_gradient() -> Result<()> {
    let x = inputs(1, 3, 3, 8)?;
    let var = candle_core::Var::from_tensor(&x[0])?;
    let y = group_norm(&var, &x[1], &x[2], 4, 1e-6, Activation::Silu)?;
    let gradients = y.backward()?;
    assert!(gradients.get(&var).is_some());
    assert!(gradients.get(&x[1]).is_none() && gradients.get(&x[2]).is_none());
    Ok(())
}

#[test]
fn wrong_shapes_are_refused_by_name() -> Result<()> {
    let x = inputs(1, 2, 2, 8)?;
    let short = normal(1, 7);
    let norm =
        |x: &Tensor, w: &Tensor, b: &Tensor, g| group_norm(x, w, b, g, 1e-6, Activation::None);
    assert_refused(
        norm(&x[1], &x[1], &x[2], 4),
        &["group_norm", "x", "[8]", "[B,H,W,C]"],
    );
    assert_refused(
        norm(&x[0], &short, &x[2], 4),
        &["group_norm", "weight", "[7]", "[8]"],
    );
    assert_refused(
        norm(&x[0], &x[1], &short, 4),
        &["group_norm", "bias", "[7]", "[8]"],
    );
    assert_refused(
        norm(&x[0], &x[1], &x[2], 3),
        &["group_norm", "8 channels", "3 groups"],
    );
    Ok(())
}
