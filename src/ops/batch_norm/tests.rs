use super::{batch_norm, batch_norm_inference, reference};
use crate::ops::Activation;
use crate::ops::testing::{
    assert_close, assert_matches, assert_refused, bits, normal, on_threads, with_gradients,
};
use candle_core::{DType, Result, Tensor};

const LEAKY: Activation = Activation::LeakyRelu(0.2);

fn inputs(b: usize, h: usize, w: usize, c: usize) -> Result<Vec<Tensor>> {
    Ok(vec![
        ((normal(1, (b, h, w, c)) * 2.0)? + 1.0)?,
        (normal(2, c) + 1.0)?,
        normal(3, c),
    ])
}

#[test]
fn matches_the_oracle_in_value_and_gradient() -> Result<()> {
    for (b, h, w, c) in [(2, 2, 3, 3), (3, 5, 7, 96), (4, 15, 13, 65)] {
        for activation in [Activation::None, LEAKY] {
            assert_matches(
                &format!("batch_norm {activation:?}"),
                |x| Ok(batch_norm(&x[0], &x[1], &x[2], 1e-5, activation)?.0),
                |x| Ok(reference::batch_norm(&x[0], &x[1], &x[2], 1e-5, activation)?.0),
                &inputs(b, h, w, c)?,
                5e-6,
            )?;
        }
    }
    Ok(())
}

#[test]
fn statistics_are_the_mean_and_the_biased_variance() -> Result<()> {
    let x = inputs(3, 9, 7, 33)?;
    let (_, mean, variance) = batch_norm(&x[0], &x[1], &x[2], 1e-5, LEAKY)?;
    let rows = x[0].to_dtype(DType::F64)?.flatten_to(2)?;
    let exact = rows.mean(0)?;
    assert_close("mean", &mean, &exact, 1e-6);
    let squares = rows.broadcast_sub(&exact)?.sqr()?;
    assert_close("variance", &variance, &squares.mean(0)?, 1e-6);
    Ok(())
}

#[test]
fn inference_with_the_batch_s_statistics_is_training() -> Result<()> {
    let x = inputs(2, 6, 5, 16)?;
    let (y, mean, variance) = batch_norm(&x[0], &x[1], &x[2], 1e-5, LEAKY)?;
    let z = batch_norm_inference(&x[0], &mean, &variance, &x[1], &x[2], 1e-5, LEAKY)?;
    assert_eq!(bits(&y), bits(&z));
    Ok(())
}

#[test]
fn inference_differentiates() -> Result<()> {
    let x = inputs(2, 3, 5, 7)?;
    let (mean, variance) = (normal(4, 7), normal(5, 7).sqr()?);
    let to = |t: &Tensor, like: &Tensor| t.to_dtype(like.dtype());
    assert_matches(
        "batch_norm_inference",
        |x| batch_norm_inference(&x[0], &mean, &variance, &x[1], &x[2], 1e-5, LEAKY),
        |x| {
            let (mean, variance) = (to(&mean, &x[0])?, to(&variance, &x[0])?);
            reference::batch_norm_inference(&x[0], &mean, &variance, &x[1], &x[2], 1e-5, LEAKY)
        },
        &x,
        4e-6,
    )
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() -> Result<()> {
    let x = inputs(5, 30, 31, 40)?;
    let run = |threads| {
        let norm = |x: &[Tensor]| Ok(batch_norm(&x[0], &x[1], &x[2], 1e-5, LEAKY)?.0);
        on_threads(threads, || with_gradients(norm, &x, DType::F32))
    };
    for (one, three) in run(1)?.iter().zip(run(3)?.iter()) {
        assert_eq!(bits(one), bits(three));
    }
    Ok(())
}

#[test]
fn wrong_shapes_are_refused_by_name() -> Result<()> {
    let x = inputs(1, 2, 2, 8)?;
    let short = normal(1, 7);
    let norm = |x: &Tensor, w: &Tensor, b: &Tensor| Ok(batch_norm(x, w, b, 1e-5, LEAKY)?.0);
    assert_refused(
        norm(&x[0], &short, &x[2]),
        &["batch_norm", "weight", "[7]", "[8]"],
    );
    assert_refused(
        norm(&x[0], &x[1], &short),
        &["batch_norm", "bias", "[7]", "[8]"],
    );
    assert_refused(
        norm(&normal(1, (1, 1, 1, 8)), &x[1], &x[2]),
        &["batch_norm", "one value per channel"],
    );
    assert_refused(
        batch_norm_inference(&x[0], &short, &x[1], &x[1], &x[2], 1e-5, LEAKY),
        &["batch_norm_inference", "mean", "[7]", "[8]"],
    );
    Ok(())
}
