use super::silu;
use crate::ops::testing::{assert_matches, bits, normal, on_threads};
use candle_core::Result;

#[test]
fn matches_the_oracle_in_value_and_gradient() -> Result<()> {
    for shape in [vec![1], vec![3, 5, 7], vec![17, 1031]] {
        let x = (normal(1, shape) * 4.0)?;
        assert_matches("silu", |x| silu(&x[0]), |x| x[0].silu(), &[x], 1e-6)?;
    }
    Ok(())
}

#[test]
fn takes_a_view() -> Result<()> {
    let x = normal(1, (6, 9));
    let view = silu(&x.t()?.narrow(0, 2, 4)?)?;
    assert_eq!(bits(&view), bits(&silu(&x)?.t()?.narrow(0, 2, 4)?));
    Ok(())
}

#[test]
fn an_element_does_not_depend_on_its_place_or_the_threads() -> Result<()> {
    let x = normal(1, 70_001);
    let all = bits(&on_threads(3, || silu(&x))?);
    for (from, count) in [(0, 1), (69_990, 11), (13, 20_000)] {
        let part = on_threads(1, || silu(&x.narrow(0, from, count)?))?;
        assert_eq!(bits(&part), all[from..from + count]);
    }
    Ok(())
}
