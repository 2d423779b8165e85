use candle_core::{DType, Device, Result, Tensor, Var};

use super::*;
use crate::config::{Reduction, ScheduleConfig, ScheduleKind};
use crate::rng::Stream;

const POW: ScheduleConfig = ScheduleConfig {
    kind: ScheduleKind::Pow,
    phi: 0.75,
};

/// Standard normal values that depend on `index` only.
fn random(index: u64, shape: &[usize]) -> Result<Tensor> {
    let mut values = vec![0f32; shape.iter().product()];
    Stream::new(11, Purpose::Init, index, 0).fill_normal(&mut values);
    Tensor::from_vec(values, shape, &Device::Cpu)
}

fn codebook(k: usize, d: usize) -> Result<Codebook> {
    Ok(Codebook {
        embedding: (random(1, &[k, d])? * 0.5)?,
        bias: Some((
            (random(2, &[d, d, 3, 3])? * 0.05)?,
            (random(3, &[d])? * 0.1)?,
        )),
    })
}

fn relative(a: &Tensor, b: &Tensor) -> Result<f32> {
    let norm = |x: &Tensor| x.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>();
    Ok(norm(&(a - b)?)? / norm(b)?)
}

#[test]
fn the_loss_and_its_gradients_are_autograds() -> Result<()> {
    let (b, h, w, d, steps) = (2, 3, 5, 6, 4);
    let schedule = Schedule::new(&POW, steps);
    let book = codebook(19, d)?;
    let v = Var::from_tensor(&random(5, &[b, h, w, d])?)?;
    let noise = random(6, &[steps, b, h, w, d])?;
    let quantized = recurrent_quantize(&v, &book, &Noise::Given(&noise), &schedule)?;
    let lookup = Var::from_tensor(&book.lookup(&quantized.codes)?)?;
    for (reduction, gamma) in [
        (Reduction::Mean, schedule.alpha.clone()),
        (Reduction::Sum, vec![1.0; steps]),
    ] {
        let loss = quantization_loss(&v, &lookup, &quantized, &schedule, &gamma, 0.25, reduction)?;
        let total = match reduction {
            Reduction::Mean => gamma.iter().sum::<f32>(),
            Reduction::Sum => 1.0,
        };
        let scaled: Vec<f32> = gamma.iter().map(|g| g / total).collect();
        let oracle = reference::quantization_loss(&v, &lookup, &noise, &schedule, &scaled, 0.25)?;
        assert!(relative(&loss, &oracle)? < 1e-5);
        let (grads, expected) = ((loss * 3.0)?.backward()?, (oracle * 3.0)?.backward()?);
        for var in [&v, &lookup] {
            let (g, e) = (grads.get(var).unwrap(), expected.get(var).unwrap());
            assert_eq!(g.dims(), e.dims());
            assert!(relative(g, e)? < 1e-5, "{reduction:?}");
        }
    }
    Ok(())
}

#[test]
fn wrong_shapes_are_refused_by_name() -> Result<()> {
    let schedule = Schedule::new(&POW, 2);
    let (book, v) = (codebook(7, 4)?, random(5, &[1, 2, 2, 4])?);
    let noise = random(6, &[3, 1, 2, 2, 4])?;
    let error = recurrent_quantize(&v, &book, &Noise::Given(&noise), &schedule)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("[2, 1, 2, 2, 4]") && error.contains("[3, 1, 2, 2, 4]"),
        "{error}"
    );
    let drawn = Noise::Drawn {
        seed: 1,
        indices: &[0],
    };
    let error = quantize_until(&v, &book, &drawn, &schedule, &[3])
        .unwrap_err()
        .to_string();
    assert!(error.contains("1..2"), "{error}");
    let wide = v.to_dtype(DType::F64)?;
    assert!(recurrent_quantize(&wide, &book, &drawn, &schedule).is_err());
    Ok(())
}
