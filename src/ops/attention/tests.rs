use super::{RopeKind, RopeTable, attention, reference};
use crate::ops::serially;
use crate::ops::testing::{
    assert_close, assert_differentiates, assert_matches, assert_refused, bits, normal, on_threads,
    values, with_gradients,
};
use candle_core::{DType, Device, Result, Tensor};

fn table(h: usize, w: usize, d: usize, kind: RopeKind) -> Result<RopeTable> {
    RopeTable::new((h, w), d, 10_000.0, kind, &Device::Cpu)
}

#[test]
fn matches_the_oracle_in_value_and_gradient() -> Result<()> {
    // The last has more queries than a block and one wide head, as in the tokenizer.
    for (b, h, w, heads, d) in [
        (2, 7, 7, 3, 24),
        (3, 1, 1, 2, 8),
        (1, 5, 7, 1, 96),
        (1, 13, 11, 1, 40),
    ] {
        let qkv = normal(1, (b, h * w, 3 * heads * d));
        for rope in [
            None,
            Some(table(h, w, d, RopeKind::OneD)?),
            Some(table(h, w, d, RopeKind::TwoD)?),
        ] {
            assert_matches(
                &format!("attention, {heads} heads of {d}, {h}x{w}"),
                |x| attention(&x[0], heads, rope.as_ref()),
                |x| reference::attention(&x[0], heads, rope.as_ref()),
                std::slice::from_ref(&qkv),
                3e-6,
            )?;
        }
    }
    Ok(())
}

#[test]
fn the_oracle_s_gradients_are_central_differences() -> Result<()> {
    let rope = table(2, 2, 4, RopeKind::OneD)?;
    assert_differentiates(
        "attention",
        |x| reference::attention(&x[0], 2, Some(&rope)),
        &[normal(1, (2, 4, 3 * 8))],
    )
}

#[test]
fn large_scores_stay_finite() -> Result<()> {
    let qkv = (normal(1, (1, 9, 3 * 16)) * 300.0)?;
    let y = attention(&qkv, 2, None)?;
    assert_close(
        "attention",
        &y,
        &reference::attention(&qkv.to_dtype(DType::F64)?, 2, None)?,
        1e-4,
    );
    Ok(())
}

#[test]
fn an_image_does_not_depend_on_the_others_or_the_threads() -> Result<()> {
    let (n, heads, d) = (150, 4, 24);
    let rope = table(n, 1, d, RopeKind::OneD)?;
    let qkv = normal(1, (7, n, 3 * heads * d));
    let all = on_threads(3, || attention(&qkv, heads, Some(&rope)))?;
    for b in [0, 6] {
        let alone = on_threads(1, || attention(&qkv.narrow(0, b, 1)?, heads, Some(&rope)))?;
        assert_eq!(bits(&alone), bits(&all.narrow(0, b, 1)?));
    }
    let run = |threads| {
        let op = |x: &[Tensor]| attention(&x[0], heads, Some(&rope));
        on_threads(threads, || {
            with_gradients(op, std::slice::from_ref(&qkv), DType::F32)
        })
    };
    assert_eq!(bits(&run(1)?[1]), bits(&run(3)?[1]));
    Ok(())
}

#[test]
fn the_table_turns_a_pair_by_its_position() -> Result<()> {
    let (h, w, d) = (4, 5, 8);
    for kind in [RopeKind::OneD, RopeKind::TwoD] {
        let rope = table(h, w, d, kind)?;
        let angles = values(rope.sin()).into_iter().zip(values(rope.cos()));
        for (i, (sin, cos)) in angles.enumerate() {
            let (token, pair) = (i / 4, i % 4);
            let (place, power) = match kind {
                RopeKind::OneD => (token, pair as f64 / 4.0),
                RopeKind::TwoD if pair < 2 => (token / w, pair as f64 / 2.0),
                RopeKind::TwoD => (token % w, (pair - 2) as f64 / 2.0),
            };
            let expected = place as f64 * 10_000f64.powf(-power);
            let turn = (sin.atan2(cos) - expected) / std::f64::consts::TAU;
            assert!(
                (turn - turn.round()).abs() < 1e-6,
                "{kind:?} {token} {pair}"
            );
        }
    }
    Ok(())
}

#[test]
fn wrong_shapes_are_refused_by_name() -> Result<()> {
    let qkv = normal(1, (2, 6, 3 * 8));
    let refused = |heads, rope: Option<&RopeTable>, parts: &[&str]| {
        assert_refused(attention(&qkv, heads, rope), parts)
    };
    refused(3, None, &["attention", "24 columns", "3·3"]);
    refused(0, None, &["attention", "24 columns"]);
    let rope = table(2, 4, 4, RopeKind::OneD)?;
    refused(
        2,
        Some(&rope),
        &["attention", "rope table", "[8, 2]", "[6, 2]"],
    );
    assert_refused(
        attention(&normal(1, (2, 24)), 2, None),
        &["attention", "qkv", "[2, 24]", "[B,N,3C]"],
    );
    let odd = RopeTable::new((2, 3), 6, 1e4, RopeKind::TwoD, &Device::Cpu);
    assert_refused(
        odd.map(|t| t.cos().clone()),
        &["rope", "width 6", "multiple of 4"],
    );
    Ok(())
}

/// A thread keeps its buffers from head to head.
#[test]
fn a_head_does_not_see_the_ones_before_it() -> Result<()> {
    let inputs = [(1, 150, 8), (2, 64, 24), (1, 5, 40), (3, 7, 8)];
    let inputs = inputs.map(|(b, n, c)| normal(n as u64, (b, n, 3 * c)));
    let each = |x: &Tensor| on_threads(1, || attention(x, 2, None));
    let alone = inputs.iter().map(each).collect::<Result<Vec<_>>>()?;
    let all = || -> Result<Vec<Tensor>> { inputs.iter().map(|x| attention(x, 2, None)).collect() };
    let together = on_threads(1, || serially(all))?;
    for (together, alone) in together.iter().zip(&alone) {
        assert_eq!(bits(together), bits(alone));
    }
    Ok(())
}
