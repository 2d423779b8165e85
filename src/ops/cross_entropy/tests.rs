use super::{cross_entropy, reference};
use crate::ops::testing::{
    assert_matches, assert_refused, bits, normal, on_threads, with_gradients,
};
use candle_core::{DType, Device, Result, Tensor};

fn targets(r: usize, k: usize) -> Result<Tensor> {
    let targets: Vec<u32> = (0..r).map(|i| (i * 7919 % k) as u32).collect();
    Tensor::from_vec(targets, r, &Device::Cpu)
}

#[test]
fn matches_the_oracle_in_value_and_gradient() -> Result<()> {
    for (r, k) in [(1, 1), (5, 7), (100, 513), (9, 4096)] {
        let targets = targets(r, k)?;
        assert_matches(
            &format!("cross_entropy of {k}"),
            |x| Ok(cross_entropy(&x[0], &targets)?.loss),
            |x| Ok(reference::cross_entropy(&x[0], &targets)?.loss),
            &[(normal(1, (r, k)) * 5.0)?],
            1e-6,
        )?;
    }
    Ok(())
}

#[test]
fn large_logits_stay_finite() -> Result<()> {
    let logits = Tensor::new(&[[1e4f32, -1e4, 0.0], [-3e38, -3e38, -3e38]], &Device::Cpu)?;
    let targets = Tensor::new(&[1u32, 2], &Device::Cpu)?;
    let loss = cross_entropy(&logits, &targets)?.loss.to_vec1::<f32>()?;
    assert_eq!(loss, [2e4, 3f32.ln()]);
    Ok(())
}

#[test]
fn not_a_number_is_passed_on() -> Result<()> {
    let logits = Tensor::new(&[[0f32, f32::NAN, 1.0]], &Device::Cpu)?;
    let loss = cross_entropy(&logits, &Tensor::new(&[0u32], &Device::Cpu)?)?.loss;
    assert!(loss.to_vec1::<f32>()?[0].is_nan());
    Ok(())
}

#[test]
fn correct_is_the_first_of_the_largest() -> Result<()> {
    let logits = Tensor::new(&[[1f32, 3., 3.], [1., 3., 3.], [4., 3., 3.]], &Device::Cpu)?;
    let targets = Tensor::new(&[1u32, 2, 0], &Device::Cpu)?;
    for correct in [
        cross_entropy(&logits, &targets)?.correct,
        reference::cross_entropy(&logits, &targets)?.correct,
    ] {
        assert_eq!(correct.to_vec1::<u32>()?, [1, 0, 1]);
    }
    Ok(())
}

#[test]
fn a_row_does_not_depend_on_the_others_or_the_threads() -> Result<()> {
    let (logits, targets) = (normal(1, (190, 513)), targets(190, 513)?);
    let all = on_threads(3, || cross_entropy(&logits, &targets))?.loss;
    for row in [0, 189] {
        let one = (logits.narrow(0, row, 1)?, targets.narrow(0, row, 1)?);
        let alone = on_threads(1, || cross_entropy(&one.0, &one.1))?.loss;
        assert_eq!(bits(&alone), bits(&all.narrow(0, row, 1)?));
    }
    let run = |threads| {
        let loss = |x: &[Tensor]| Ok(cross_entropy(&x[0], &targets)?.loss);
        on_threads(threads, || {
            with_gradients(loss, std::slice::from_ref(&logits), DType::F32)
        })
    };
    assert_eq!(bits(&run(1)?[1]), bits(&run(3)?[1]));
    Ok(())
}

#[test]
fn wrong_shapes_types_and_targets_are_refused_by_name() -> Result<()> {
    let logits = normal(1, (4, 6));
    let loss = |targets: &Tensor| Ok(cross_entropy(&logits, targets)?.loss);
    assert_refused(
        loss(&targets(3, 6)?),
        &["cross_entropy", "targets", "[3]", "[4]"],
    );
    assert_refused(
        loss(&normal(1, 4)),
        &["cross_entropy", "targets", "F32", "U32"],
    );
    assert_refused(
        loss(&Tensor::new(&[0u32, 1, 6, 2], &Device::Cpu)?),
        &["cross_entropy", "target 6", "under 6"],
    );
    Ok(())
}
