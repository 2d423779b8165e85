use candle_core::{Device, Result, Tensor, Var};

use super::{feature_distance, reference};
use crate::ops::testing::{
    assert_differentiates, assert_matches, assert_refused, bits, normal, on_threads, values,
};

fn inputs(shape: &[usize]) -> Vec<Tensor> {
    vec![
        normal(1, shape),
        (normal(2, shape) * 3.0).expect("a product"),
    ]
}

fn weight(c: usize) -> Tensor {
    normal(3, c).abs().expect("f32 values")
}

#[test]
fn matches_the_oracle_in_value_and_gradient() -> Result<()> {
    for shape in [vec![1, 1, 1, 3], vec![2, 5, 7, 19], vec![3, 40, 33, 64]] {
        let weight = weight(shape[3]);
        assert_matches(
            "feature_distance",
            |x| feature_distance(&x[0], &x[1], &weight),
            |x| reference::feature_distance(&x[0], &x[1], &weight.to_dtype(x[0].dtype())?),
            &inputs(&shape),
            2e-6,
        )?;
    }
    Ok(())
}

#[test]
fn the_oracle_differentiates_its_value() -> Result<()> {
    let weight = weight(5).to_dtype(candle_core::DType::F64)?;
    let oracle = |x: &[Tensor]| reference::feature_distance(&x[0], &x[1], &weight);
    assert_differentiates("feature_distance", oracle, &inputs(&[1, 2, 3, 5]))
}

#[test]
fn where_a_norm_is_zero_the_gradient_is_zero_and_the_rest_is_as_without() -> Result<()> {
    let weight = weight(4);
    let mut rows = vec![1f32, -2.0, 0.5, 3.0];
    rows.extend([0.0; 4]);
    let b = normal(4, (2, 4));
    for distance in [feature_distance, reference::feature_distance] {
        let a = Var::from_vec(rows.clone(), (2, 4), &Device::Cpu)?;
        let y = distance(&a, &b, &weight)?;
        let grad = values(y.backward()?.get(&a).expect("a variable"));
        assert_eq!(grad[4..], [0.0; 4]);
        assert!(grad[..4].iter().all(|g| g.is_finite() && *g != 0.0));
        let alone = distance(&a.narrow(0, 0, 1)?, &b.narrow(0, 0, 1)?, &weight)?;
        let dead = distance(
            &b.narrow(0, 1, 1)?,
            &b.narrow(0, 1, 1)?.zeros_like()?,
            &weight,
        )?;
        let mean = (values(&alone)[0] + values(&dead)[0]) / 2.0;
        assert!((values(&y)[0] - mean).abs() < 1e-6);
    }
    Ok(())
}

#[test]
fn threads_change_no_bit() -> Result<()> {
    let (x, weight) = (inputs(&[2, 90, 50, 24]), weight(24));
    let distance = || feature_distance(&x[0], &x[1], &weight);
    assert_eq!(
        bits(&on_threads(1, distance)?),
        bits(&on_threads(3, distance)?)
    );
    Ok(())
}

#[test]
fn wrong_shapes_are_refused_by_name() {
    let (a, b) = (normal(1, (4, 8)), normal(2, (4, 7)));
    assert_refused(
        feature_distance(&a, &b, &weight(8)),
        &["feature_distance", "b", "[4, 7]"],
    );
    assert_refused(
        feature_distance(&a, &a, &weight(7)),
        &["feature_distance", "weight", "[7]"],
    );
}
