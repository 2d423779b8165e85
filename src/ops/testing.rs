//! What the operations' tests share: random tensors, gradients for a random upstream gradient, and
//! comparisons.

use candle_core::{DType, Device, Result, Shape, Tensor, Var};

use crate::rng::{Purpose, Stream};

/// Standard normal f32 of `shape`; `seed` selects the draw.
pub(super) fn normal(seed: u64, shape: impl Into<Shape>) -> Tensor {
    let shape = shape.into();
    let mut values = vec![0f32; shape.elem_count()];
    Stream::new(seed, Purpose::Noise, 0, 0).fill_normal(&mut values);
    Tensor::from_vec(values, shape, &Device::Cpu).expect("as many values as the shape has")
}

/// The values of a tensor as f64, in row order.
pub(super) fn values(t: &Tensor) -> Vec<f64> {
    let t = t.to_dtype(DType::F64).and_then(|t| t.flatten_all());
    t.and_then(|t| t.to_vec1()).expect("a tensor's values")
}

/// The bits of an f32 tensor.
pub(super) fn bits(t: &Tensor) -> Vec<u32> {
    let t = t.flatten_all().and_then(|t| t.to_vec1::<f32>());
    let t = t.expect("an f32 tensor's values");
    t.into_iter().map(f32::to_bits).collect()
}

/// f's result and its gradients for `inputs`, in `dtype`, under an upstream gradient drawn for the
/// result.
pub(super) fn with_gradients(
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
    inputs: &[Tensor],
    dtype: DType,
) -> Result<Vec<Tensor>> {
    let vars = inputs
        .iter()
        .map(|x| Var::from_tensor(&x.to_dtype(dtype)?))
        .collect::<Result<Vec<_>>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let y = f(&tensors)?;
    let upstream = normal(991, y.shape()).to_dtype(dtype)?;
    let grads = (&y * upstream)?.sum_all()?.backward()?;
    let mut all = vec![y.detach()];
    for (i, var) in vars.iter().enumerate() {
        match grads.get(var) {
            Some(grad) => all.push(grad.clone()),
            None => candle_core::bail!("input {i} has no gradient"),
        }
    }
    Ok(all)
}

/// Asserts equal shapes and a difference of at most `tolerance` times the largest expected value.
pub(super) fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.dims(), expected.dims(), "{what}: shapes");
    let (found, expected) = (values(found), values(expected));
    let scale = expected.iter().fold(0f64, |m, x| m.max(x.abs()));
    for (i, (f, e)) in found.iter().zip(&expected).enumerate() {
        let difference = (f - e).abs();
        assert!(
            difference <= tolerance * scale,
            "{what}: element {i} is {f}, expected {e} (largest {scale})"
        );
    }
}

/// Asserts that the operation and its oracle in f64 agree in value and in every gradient.
pub(super) fn assert_matches(
    what: &str,
    operation: impl Fn(&[Tensor]) -> Result<Tensor>,
    oracle: impl Fn(&[Tensor]) -> Result<Tensor>,
    inputs: &[Tensor],
    tolerance: f64,
) -> Result<()> {
    let found = with_gradients(operation, inputs, DType::F32)?;
    let expected = with_gradients(oracle, inputs, DType::F64)?;
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let part = match i {
            0 => "value".to_string(),
            i => format!("gradient of input {}", i - 1),
        };
        assert_close(&format!("{what}, {part}"), found, expected, tolerance);
    }
    Ok(())
}

/// Asserts that the gradients of `f` in f64 are its central differences.
pub(super) fn assert_differentiates(
    what: &str,
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
    inputs: &[Tensor],
) -> Result<()> {
    const STEP: f64 = 1e-4;
    let analytic = with_gradients(&f, inputs, DType::F64)?;
    let inputs = inputs
        .iter()
        .map(|x| x.to_dtype(DType::F64))
        .collect::<Result<Vec<_>>>()?;
    let loss = |inputs: &[Tensor]| -> Result<f64> {
        let y = f(inputs)?;
        let upstream = normal(991, y.shape()).to_dtype(DType::F64)?;
        (y * upstream)?.sum_all()?.to_scalar()
    };
    for (i, input) in inputs.iter().enumerate() {
        let moved = |element: usize, by: f64| -> Result<f64> {
            let mut moved = values(input);
            moved[element] += by;
            let mut inputs = inputs.clone();
            inputs[i] = Tensor::from_vec(moved, input.shape(), &Device::Cpu)?;
            loss(&inputs)
        };
        let numeric = (0..input.elem_count())
            .map(|e| Ok((moved(e, STEP)? - moved(e, -STEP)?) / (2.0 * STEP)))
            .collect::<Result<Vec<f64>>>()?;
        let numeric = Tensor::from_vec(numeric, input.shape(), &Device::Cpu)?;
        assert_close(
            &format!("{what}, input {i}"),
            &analytic[i + 1],
            &numeric,
            1e-6,
        );
    }
    Ok(())
}

/// Asserts that `f` is refused, with all of `parts` in the message.
pub(super) fn assert_refused(result: Result<Tensor>, parts: &[&str]) {
    let message = match result {
        Ok(y) => panic!("not refused: gave {:?}", y.dims()),
        Err(e) => e.to_string(),
    };
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

/// Runs `f` with this number of threads.
pub(super) fn on_threads<R: Send>(count: usize, f: impl FnOnce() -> R + Send) -> R {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(count).build();
    pool.expect("a thread pool").install(f)
}
