use super::{gate_residual, reference, rms_norm_modulate};
use crate::ops::testing::{
    assert_matches, assert_refused, bits, normal, on_threads, with_gradients,
};
use candle_core::{DType, Result, Tensor};

fn inputs(b: usize, n: usize, c: usize) -> Vec<Tensor> {
    vec![
        normal(1, (b, n, c)),
        normal(2, (b, c)),
        normal(3, (b, c)),
        normal(4, (b, n, c)),
    ]
}

fn norm(x: &[Tensor]) -> Result<Tensor> {
    rms_norm_modulate(&x[0], &x[1], &x[2], 1e-6)
}

fn gated(x: &[Tensor]) -> Result<Tensor> {
    gate_residual(&x[0], &x[1], &x[3])
}

#[test]
fn match_the_oracles_in_value_and_gradient() -> Result<()> {
    for (b, n, c) in [(1, 1, 5), (3, 49, 40), (2, 300, 97), (5, 16, 768)] {
        let inputs = inputs(b, n, c);
        assert_matches(
            "rms_norm_modulate",
            norm,
            |x| reference::rms_norm_modulate(&x[0], &x[1], &x[2], 1e-6),
            &inputs[..3],
            2e-6,
        )?;
        let three = [inputs[0].clone(), inputs[1].clone(), inputs[3].clone()];
        assert_matches(
            "gate_residual",
            |x| gate_residual(&x[0], &x[1], &x[2]),
            |x| reference::gate_residual(&x[0], &x[1], &x[2]),
            &three,
            1e-6,
        )?;
    }
    Ok(())
}

#[test]
fn an_image_does_not_depend_on_the_others_or_the_threads() -> Result<()> {
    let x = inputs(7, 150, 72);
    for op in [norm, gated] {
        let all = on_threads(3, || op(&x))?;
        for b in [0, 6] {
            let image: Vec<_> = x.iter().map(|x| x.narrow(0, b, 1)).collect::<Result<_>>()?;
            let alone = on_threads(1, || op(&image))?;
            assert_eq!(bits(&alone), bits(&all.narrow(0, b, 1)?));
        }
    }
    Ok(())
}

#[test]
fn gradients_have_the_same_bits_on_any_number_of_threads() -> Result<()> {
    let x = inputs(3, 700, 72);
    let run = |threads| on_threads(threads, || with_gradients(norm, &x[..3], DType::F32));
    for (one, three) in run(1)?.iter().zip(run(3)?.iter()) {
        assert_eq!(bits(one), bits(three));
    }
    Ok(())
}

#[test]
fn rows_of_a_wider_matrix_are_taken_as_they_are() -> Result<()> {
    // Shift, scale and gate are columns of one matmul's result.
    let wide = normal(5, (3, 3 * 8));
    let x = normal(1, (3, 5, 8));
    let column = |i: usize| wide.narrow(1, i * 8, 8);
    let from_view = rms_norm_modulate(&x, &column(0)?, &column(1)?, 1e-6)?;
    let copied = rms_norm_modulate(
        &x,
        &column(0)?.contiguous()?,
        &column(1)?.contiguous()?,
        1e-6,
    )?;
    assert_eq!(bits(&from_view), bits(&copied));
    Ok(())
}

#[test]
fn wrong_shapes_are_refused_by_name() {
    let x = inputs(2, 3, 4);
    let wrong = normal(1, (3, 4));
    assert_refused(
        rms_norm_modulate(&x[0], &wrong, &x[2], 1e-6),
        &["rms_norm_modulate", "shift", "[3, 4]", "[2, 4]"],
    );
    assert_refused(
        rms_norm_modulate(&x[0], &x[1], &wrong, 1e-6),
        &["rms_norm_modulate", "scale", "[3, 4]", "[2, 4]"],
    );
    assert_refused(
        gate_residual(&x[0], &wrong, &x[3]),
        &["gate_residual", "gate", "[3, 4]", "[2, 4]"],
    );
    assert_refused(
        gate_residual(&x[0], &x[1], &wrong),
        &["gate_residual", "branch", "[3, 4]", "[2, 3, 4]"],
    );
    assert_refused(
        rms_norm_modulate(&wrong, &wrong, &wrong, 1e-6),
        &["rms_norm_modulate", "x", "[3, 4]", "[B,N,C]"],
    );
}
