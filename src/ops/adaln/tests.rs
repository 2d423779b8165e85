use super::{
    Normed, gate_residual, gated_linear, modulated_linear, modulated_swiglu, reference,
    rms_norm_modulate, rms_norm_projected,
};
use crate::ops::testing::{
    assert_matches, assert_refused, bits, normal, on_threads, with_gradients,
};
use crate::ops::{Packed, linear, serially, swiglu};
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

#[test]
fn a_projection_of_few_inputs_is_that_of_the_normalized_rows() -> Result<()> {
    let (b, n, k, c, o) = (3, 20, 6, 40, 35);
    for positions in [1, n] {
        let u = normal(1, (b, n, k));
        let (sources, added) = (normal(2, (k, c)), normal(3, (positions, c)));
        let (shift, scale) = (normal(4, (b, c)), normal(5, (b, c)));
        let weight = normal(6, (o, c));
        let x = u
            .reshape((b * n, k))?
            .matmul(&sources)?
            .reshape((b, n, c))?
            .broadcast_add(&added)?;
        let project = |rows: &Tensor| linear(rows, &weight, None);
        let expected = project(&rms_norm_modulate(&x, &shift, &scale, 1e-6)?)?;
        let rows = Tensor::cat(&[sources, added], 0)?
            .unsqueeze(0)?
            .broadcast_mul(&(scale.unsqueeze(1)? + 1.0)?)?;
        let projected = project(&Tensor::cat(&[rows, shift.unsqueeze(1)?], 1)?)?;
        let of = |u: &Tensor, x: &Tensor, p: &Tensor| rms_norm_projected(u, x, p, 1e-6);
        let found = of(&u, &x, &projected)?;
        let most = (&found - &expected)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(most < 2e-5, "{positions} positions: {most:e}");
        let image = |x: &Tensor| x.narrow(0, 1, 1);
        let alone = on_threads(1, || of(&image(&u)?, &image(&x)?, &image(&projected)?))?;
        assert!(bits(&alone) == bits(&image(&found)?));
    }
    assert_refused(
        rms_norm_projected(
            &normal(1, (1, 4, 2)),
            &normal(1, (1, 4, 3)),
            &normal(1, (1, 6, 5)),
            1e-6,
        ),
        &["6 projected rows", "expected 4 or 7"],
    );
    Ok(())
}

/// Several blocks of rows, more terms than are multiplied at a time, halves of whole panels and
/// not.
#[test]
fn beside_a_frozen_weight_the_bits_are_those_of_one_operation_after_the_other() -> Result<()> {
    for (b, n, c, f) in [
        (1, 9, 40, 24),
        (2, 64, 48, 80),
        (3, 150, 600, 32),
        (1, 64, 64, 41),
    ] {
        let inputs = inputs(b, n, c);
        let [x, shift, scale, branch] = &inputs[..] else {
            unreachable!("four inputs")
        };
        let normed = Normed {
            x,
            shift,
            scale,
            eps: 1e-6,
        };
        let (wide, square) = (normal(5, (2 * f, c)), normal(6, (c, c)));
        let plain = || -> Result<[Tensor; 3]> {
            let m = norm(&inputs)?;
            let wide = linear(&m, &wide, None)?;
            let branch = linear(branch, &square, None)?;
            let gated = gate_residual(x, shift, &branch)?;
            Ok([swiglu(&wide)?, wide, gated])
        };
        let fused = || -> Result<[Tensor; 3]> {
            Ok([
                modulated_swiglu(normed, &wide, &Packed::default())?,
                modulated_linear(normed, &wide, &Packed::default())?,
                gated_linear(x, shift, branch, &square, &Packed::default())?,
            ])
        };
        let expected = plain()?;
        for found in [on_threads(3, fused)?, serially(fused)?] {
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!(found.dims(), expected.dims());
                assert_eq!(bits(found), bits(expected), "{b}, {n}, {c}, {f}");
            }
        }
    }
    Ok(())
}
