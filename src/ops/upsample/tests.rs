use candle_core::Result;

use super::{reference, upsample_nearest2x};
use crate::ops::testing::*;

#[test]
fn values_and_gradients_are_the_oracles() -> Result<()> {
    for shape in [(2, 5, 7, 3), (1, 1, 1, 1), (3, 16, 16, 40)] {
        let x = normal(1, shape);
        assert_matches(
            &format!("{shape:?}"),
            |t| upsample_nearest2x(&t[0]),
            |t| reference::upsample_nearest2x(&t[0]),
            &[x],
            1e-6,
        )?;
    }
    Ok(())
}

#[test]
fn a_pixel_becomes_four() -> Result<()> {
    let x = normal(1, (1, 2, 1, 1));
    let (a, b) = (values(&x)[0], values(&x)[1]);
    let expected = [a, a, a, a, b, b, b, b];
    assert_eq!(values(&upsample_nearest2x(&x)?), expected);
    Ok(())
}

#[test]
fn the_oracle_differentiates() -> Result<()> {
    let x = normal(1, (2, 3, 2, 2));
    assert_differentiates("the oracle", |t| reference::upsample_nearest2x(&t[0]), &[x])
}

#[test]
fn wrong_shapes_are_refused_by_name() {
    let x = normal(1, (2, 3, 2));
    assert_refused(upsample_nearest2x(&x), &["upsample_nearest2x", "[2, 3, 2]"]);
}
