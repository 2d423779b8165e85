use super::{reference, swiglu};
use crate::ops::testing::{assert_matches, assert_refused, bits, normal, on_threads};
use candle_core::Result;

#[test]
fn matches_the_oracle_in_value_and_gradient() -> Result<()> {
    for shape in [vec![2], vec![5, 7, 2 * 37], vec![301, 2 * 352]] {
        let x = (normal(1, shape) * 3.0)?;
        assert_matches(
            "swiglu",
            |x| swiglu(&x[0]),
            |x| reference::swiglu(&x[0]),
            &[x],
            1e-6,
        )?;
    }
    Ok(())
}

#[test]
fn a_row_does_not_depend_on_the_others_or_the_threads() -> Result<()> {
    let x = normal(1, (7, 150, 96));
    let all = on_threads(3, || swiglu(&x))?;
    for b in [0, 6] {
        let alone = on_threads(1, || swiglu(&x.narrow(0, b, 1)?))?;
        assert_eq!(bits(&alone), bits(&all.narrow(0, b, 1)?));
    }
    Ok(())
}

#[test]
fn odd_widths_are_refused() {
    assert_refused(swiglu(&normal(1, (4, 7))), &["swiglu", "7 columns", "even"]);
    assert_refused(swiglu(&normal(1, ())), &["swiglu", "[..,C]"]);
}
