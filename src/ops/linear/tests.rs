use candle_core::{Result, Var};

use super::{linear, reference};
use crate::ops::testing::*;

#[test]
fn values_and_gradients_are_the_oracles() -> Result<()> {
    let sizes = [
        (&[1][..], 1, 1),
        (&[3], 2, 5),
        (&[2, 5], 7, 1),
        (&[1, 1], 600, 33),
        (&[300], 40, 150),
        (&[2, 3, 4], 1100, 3),
    ];
    for (rows, inputs, outputs) in sizes {
        let x = normal(1, [rows, &[inputs]].concat());
        let (weight, bias) = (normal(2, (outputs, inputs)), normal(3, outputs));
        assert_matches(
            &format!("{rows:?}×{inputs} to {outputs}"),
            |t| linear(&t[0], &t[1], Some(&t[2])),
            |t| reference::linear(&t[0], &t[1], Some(&t[2])),
            &[x.clone(), weight.clone(), bias],
            1e-5,
        )?;
        assert_matches(
            "without bias",
            |t| linear(&t[0], &t[1], None),
            |t| reference::linear(&t[0], &t[1], None),
            &[x, weight],
            1e-5,
        )?;
    }
    Ok(())
}

#[test]
fn the_oracle_differentiates() -> Result<()> {
    assert_differentiates(
        "the oracle",
        |t| reference::linear(&t[0], &t[1], Some(&t[2])),
        &[normal(1, (2, 3, 4)), normal(2, (5, 4)), normal(3, 5)],
    )
}

/// Sampling relies on this promise: there is no shortcut for few rows, and the rows at the end of a
/// block are computed like all others.
#[test]
fn a_row_has_the_same_bits_among_any_number_of_rows() -> Result<()> {
    let sizes = [
        (1, 8),
        (2, 2),
        (3, 1),
        (16, 3),
        (32, 64),
        (100, 24),
        (513, 65),
        (600, 129),
        (512, 4097),
        (768, 200),
        (1300, 7),
        (2048, 1),
    ];
    for (inputs, outputs) in sizes {
        let x = normal(1, (400, inputs));
        let (weight, bias) = (normal(2, (outputs, inputs)), normal(3, outputs));
        let rows = bits(&linear(&x, &weight, Some(&bias))?);
        let without = bits(&linear(&x, &weight, None)?);
        for (start, count) in (0..70).map(|i| (i * 5, 1 + i % 40)).chain([
            (0, 127),
            (3, 128),
            (128, 129),
            (100, 257),
            (399, 1),
        ]) {
            let part = x.narrow(0, start, count)?;
            let range = start * outputs..(start + count) * outputs;
            let what = format!("{inputs}→{outputs}, {count} rows from {start}");
            let y = on_threads(1 + count % 3, || linear(&part, &weight, Some(&bias)))?;
            assert!(bits(&y) == rows[range.clone()], "{what}");
            let y = linear(&part, &weight, None)?;
            assert!(bits(&y) == without[range], "{what} without bias");
        }
    }
    Ok(())
}

#[test]
fn untracked_inputs_get_no_gradient() -> Result<()> {
    let (x, weight, bias) = (normal(1, (6, 3)), normal(2, (4, 3)), normal(3, 4));
    let tracked = Var::from_tensor(&x)?;
    let grads = linear(&tracked, &weight, Some(&bias))?.backward()?;
    assert!(grads.get(&tracked).is_some());
    assert!(grads.get(&weight).is_none() && grads.get(&bias).is_none());

    let tracked = Var::from_tensor(&bias)?;
    let grads = linear(&x, &weight, Some(&tracked))?.backward()?;
    assert!(grads.get(&tracked).is_some());
    assert!(grads.get(&weight).is_none() && grads.get(&x).is_none());
    Ok(())
}

#[test]
fn wrong_shapes_are_refused_by_name() {
    let weight = normal(2, (4, 3));
    let refused = |x: &[usize], parts: &[&str]| {
        assert_refused(linear(&normal(1, x), &weight, None), parts);
    };
    refused(&[5, 2], &["linear", "[4,3]", "[5, 2]"]);
    refused(&[0, 3], &["linear", "no elements"]);
    assert_refused(
        linear(&normal(1, (5, 3)), &normal(2, 3), None),
        &["weight", "[O,I]"],
    );
    assert_refused(
        linear(&normal(1, (5, 3)), &weight, Some(&normal(3, 5))),
        &["bias", "[4]"],
    );
}
