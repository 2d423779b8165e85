use super::{layer_norm, reference};
use crate::ops::testing::{
    assert_matches, assert_refused, bits, normal, on_threads, with_gradients,
};
use candle_core::{DType, Result, Tensor};

fn inputs(shape: &[usize]) -> Result<Vec<Tensor>> {
    let c = shape[shape.len() - 1];
    Ok(vec![
        ((normal(1, shape) * 2.0)? + 3.0)?,
        (normal(2, c) + 1.0)?,
        normal(3, c),
    ])
}

#[test]
fn matches_the_oracle_in_value_and_gradient() -> Result<()> {
    for shape in [vec![1, 7], vec![4, 3, 5, 32], vec![700, 97]] {
        assert_matches(
            "layer_norm",
            |x| layer_norm(&x[0], &x[1], &x[2], 1e-5),
            |x| reference::layer_norm(&x[0], &x[1], &x[2], 1e-5),
            &inputs(&shape)?,
            2e-6,
        )?;
    }
    Ok(())
}

#[test]
fn a_row_does_not_depend_on_the_others_or_the_threads() -> Result<()> {
    let x = inputs(&[7, 190, 72])?;
    let norm = |rows: &Tensor| layer_norm(rows, &x[1], &x[2], 1e-5);
    let all = on_threads(3, || norm(&x[0]))?;
    for b in [0, 6] {
        let alone = on_threads(1, || norm(&x[0].narrow(0, b, 1)?))?;
        assert_eq!(bits(&alone), bits(&all.narrow(0, b, 1)?));
    }
    let run = |threads| {
        let norm = |x: &[Tensor]| layer_norm(&x[0], &x[1], &x[2], 1e-5);
        on_threads(threads, || with_gradients(norm, &x, DType::F32))
    };
    for (one, three) in run(1)?.iter().zip(run(3)?.iter()) {
        assert_eq!(bits(one), bits(three));
    }
    Ok(())
}

#[test]
fn wrong_shapes_are_refused_by_name() {
    let (x, c) = (normal(1, (4, 8)), normal(2, 8));
    let short = normal(3, 7);
    assert_refused(
        layer_norm(&x, &short, &c, 1e-5),
        &["layer_norm", "weight", "[7]", "[8]"],
    );
    assert_refused(
        layer_norm(&x, &c, &short, 1e-5),
        &["layer_norm", "bias", "[7]", "[8]"],
    );
}
