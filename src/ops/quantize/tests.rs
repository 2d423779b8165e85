use candle_core::{DType, Device, Result, Tensor, Var};

use super::*;
use crate::config::{Reduction, ScheduleConfig, ScheduleKind};
use crate::ops::testing::{assert_differentiates, bits, on_threads};
use crate::rng::Stream;

const POW: ScheduleConfig = ScheduleConfig {
    kind: ScheduleKind::Pow,
    phi: 0.75,
    logit: (-5.0, 4.0),
};

/// Standard normal values that depend only on `index`.
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

/// Asserts that codes differ from the reference's at ties only; continues from the codes found.
fn assert_codes_are_nearest(found: &Quantized, embedding: &Tensor) -> Result<()> {
    let (k, d) = embedding.dims2()?;
    let book: Vec<f32> = embedding.flatten_all()?.to_vec1()?;
    let rows: Vec<f32> = found.noisy.flatten_all()?.to_vec1()?;
    let codes: Vec<u32> = found.codes.flatten_all()?.to_vec1()?;
    for (row, code) in rows.chunks(d).zip(codes) {
        let distance = |k: usize| -> f64 {
            let e = &book[k * d..(k + 1) * d];
            row.iter()
                .zip(e)
                .map(|(v, e)| (f64::from(*v) - f64::from(*e)).powi(2))
                .sum()
        };
        let best = (0..k).min_by(|a, b| distance(*a).total_cmp(&distance(*b)));
        assert_eq!(Some(code as usize), best);
    }
    Ok(())
}

#[test]
fn every_step_is_the_oracles_at_odd_sizes() -> Result<()> {
    for (b, h, w, d, k, steps) in [
        (2, 3, 5, 6, 19, 4),
        (1, 1, 1, 1, 1, 1),
        (3, 7, 5, 33, 130, 3),
    ] {
        let schedule = Schedule::new(&POW, steps);
        let mut book = codebook(k, d)?;
        for with_bias in [true, false] {
            let v = random(5, &[b, h, w, d])?;
            let noise = random(6, &[steps, b, h, w, d])?;
            let found = recurrent_quantize(&v, &book, &Noise::Given(&noise), &schedule)?;
            let slow = |nearest: fn(&Tensor, &Tensor) -> Result<Tensor>| {
                reference::recurrent_quantize(&v, &book, &Noise::Given(&noise), &schedule, nearest)
            };
            let expected = slow(reference::nearest)?;
            for (found, by) in [
                (&found.codes, "the fast side"),
                (&slow(reference::nearest_by_products)?.codes, "products"),
            ] {
                assert_eq!(
                    found.flatten_all()?.to_vec1::<u32>()?,
                    expected.codes.flatten_all()?.to_vec1::<u32>()?,
                    "{k} codes, bias {with_bias}, by {by}"
                );
            }
            assert_eq!(found.sums.dims(), [steps + 1, b, h, w, d]);
            assert_eq!(bits(&found.sums), bits(&expected.sums));
            assert_eq!(bits(&found.noisy), bits(&expected.noisy));
            book.bias = None;
        }
    }
    Ok(())
}

#[test]
fn near_ties_are_decided_by_true_distances() -> Result<()> {
    // Pairs of codes that are a few ulp apart, far from the origin: in f32 their scores cannot be
    // distinguished.
    let (k, d) = (64, 16);
    let mut values: Vec<f32> = (random(1, &[k, d])? + 40.0)?.flatten_all()?.to_vec1()?;
    for pair in values.chunks_exact_mut(2 * d) {
        let (a, b) = pair.split_at_mut(d);
        for (i, (a, b)) in a.iter().zip(b).enumerate() {
            *b = f32::from_bits(a.to_bits() + (i as u32 % 3));
        }
    }
    let embedding = Tensor::from_vec(values, (k, d), &Device::Cpu)?;
    let v = (random(2, &[3, 8, 8, d])? + 40.0)?;
    let book = Codebook {
        embedding: embedding.clone(),
        bias: None,
    };
    let once = Schedule {
        alpha: vec![1.0],
        beta: vec![0.0],
    };
    let drawn = Noise::Drawn {
        seed: 1,
        indices: &[0, 1, 2],
    };
    let found = recurrent_quantize(&v, &book, &drawn, &once)?;
    assert_codes_are_nearest(&found, &embedding)
}

#[test]
fn of_equal_codes_the_lowest_is_taken() -> Result<()> {
    let one = random(1, &[1, 5])?;
    let embedding = one.broadcast_as((40, 5))?.contiguous()?;
    let book = Codebook {
        embedding,
        bias: None,
    };
    let drawn = Noise::Drawn {
        seed: 1,
        indices: &[0],
    };
    let found = recurrent_quantize(
        &random(2, &[1, 5, 5, 5])?,
        &book,
        &drawn,
        &Schedule::new(&POW, 3),
    )?;
    assert_eq!(found.codes.flatten_all()?.to_vec1::<u32>()?, vec![0; 75]);
    Ok(())
}

#[test]
fn an_image_alone_gives_the_bits_it_gives_among_others() -> Result<()> {
    let (b, h, w, d, steps) = (7, 5, 3, 12, 5);
    let (schedule, book) = (Schedule::new(&POW, steps), codebook(97, d)?);
    let v = random(5, &[b, h, w, d])?;
    let indices: Vec<u64> = (0..b as u64).map(|i| 1000 + 7 * i).collect();
    let t = [1u32, 5, 3, 2, 5, 4, 1];
    let on = |threads: usize| {
        on_threads(threads, || {
            let noise = Noise::Drawn {
                seed: 3,
                indices: &indices,
            };
            let all = recurrent_quantize(&v, &book, &noise, &schedule)?;
            Ok::<_, candle_core::Error>((all, quantize_until(&v, &book, &noise, &schedule, &t)?))
        })
    };
    let (all, examples) = on(1)?;
    let (again, _) = on(3)?;
    assert_eq!(bits(&all.sums), bits(&again.sums));
    for i in 0..b {
        let one = v.narrow(0, i, 1)?;
        let noise = Noise::Drawn {
            seed: 3,
            indices: &indices[i..i + 1],
        };
        let alone = recurrent_quantize(&one, &book, &noise, &schedule)?;
        for (alone, all) in [(&alone.sums, &all.sums), (&alone.noisy, &all.noisy)] {
            assert_eq!(bits(alone), bits(&all.narrow(1, i, 1)?));
        }
        let codes = |codes: &Tensor| codes.flatten_all()?.to_vec1::<u32>();
        assert_eq!(codes(&alone.codes)?, codes(&all.codes.narrow(1, i, 1)?)?);
        // The generator is trained on the state at the image's own step.
        let step = t[i] as usize;
        assert_eq!(
            codes(&examples.codes.get(i)?)?,
            codes(&alone.codes.get(step - 1)?)?
        );
        assert_eq!(
            bits(&examples.sum.get(i)?),
            bits(&alone.sums.get(step - 1)?)
        );
        let eps = noise.step(step, [1, h, w, d], &Device::Cpu)?;
        assert_eq!(bits(&examples.noise.get(i)?), bits(&eps));
    }
    Ok(())
}

#[test]
fn given_noise_stops_where_drawn_noise_does() -> Result<()> {
    let (b, h, w, d, steps) = (3, 2, 3, 4, 3);
    let (schedule, book, v) = (
        Schedule::new(&POW, steps),
        codebook(31, d)?,
        random(5, &[b, h, w, d])?,
    );
    let drawn = Noise::Drawn {
        seed: 3,
        indices: &[4, 9, 2],
    };
    let maps = (1..=steps).map(|t| drawn.step(t, [b, h, w, d], &Device::Cpu));
    let given = Tensor::stack(&maps.collect::<Result<Vec<_>>>()?, 0)?;
    let a = quantize_until(&v, &book, &drawn, &schedule, &[2, 3, 1])?;
    let b = quantize_until(&v, &book, &Noise::Given(&given), &schedule, &[2, 3, 1])?;
    for (a, b) in [(&a.noise, &b.noise), (&a.sum, &b.sum)] {
        assert_eq!(bits(a), bits(b));
    }
    Ok(())
}

#[test]
fn numbers_that_are_not_finite_do_no_harm() -> Result<()> {
    let book = codebook(20, 4)?;
    let v = Tensor::new(
        &[[[[f32::NAN, 0.0, 0.0, 0.0], [f32::INFINITY; 4]]]],
        &Device::Cpu,
    )?;
    let drawn = Noise::Drawn {
        seed: 1,
        indices: &[0],
    };
    let codes = recurrent_quantize(&v, &book, &drawn, &Schedule::new(&POW, 2))?.codes;
    assert!(
        codes
            .flatten_all()?
            .to_vec1::<u32>()?
            .iter()
            .all(|c| *c < 20)
    );
    Ok(())
}

#[test]
fn the_lookup_has_gradients_for_codes_and_convolution() -> Result<()> {
    let codes = Tensor::new(
        &[[[[0u32, 2, 2], [1, 0, 4]]], [[[1, 1, 1], [4, 2, 0]]]],
        &Device::Cpu,
    )?;
    let inputs = [
        random(1, &[5, 3])?,
        random(2, &[3, 3, 3, 3])?,
        random(3, &[3])?,
    ];
    assert_differentiates(
        "lookup",
        |x| {
            let bias = Some((x[1].clone(), x[2].clone()));
            Codebook {
                embedding: x[0].clone(),
                bias,
            }
            .lookup(&codes)
        },
        &inputs,
    )
}

#[test]
fn perturbed_codes_change_what_comes_before_an_examples_step_only() -> Result<()> {
    let (b, h, w, d, steps) = (3, 3, 5, 6, 4);
    let schedule = Schedule::new(&POW, steps);
    let book = codebook(19, d)?;
    let v = random(5, &[b, h, w, d])?;
    let indices = [4, 1 << 40, 9];
    let noise = Noise::Drawn {
        seed: 3,
        indices: &indices,
    };
    let (t, by) = ([1, 3, 4], Perturbation::new(&book.embedding, 0.5)?);
    let plain = quantize_until(&v, &book, &noise, &schedule, &t)?;
    let found = quantize_until_perturbed(&v, &book, &noise, &schedule, &t, Some(&by))?;
    let expected = reference::quantize_until(
        &v,
        &book,
        &noise,
        &schedule,
        &t,
        Some(&by),
        reference::nearest,
    )?;
    let codes = |x: &Examples| x.codes.flatten_all()?.to_vec1::<u32>();
    assert_eq!(codes(&found)?, codes(&expected)?);
    assert!(relative(&found.sum, &expected.sum)? < 1e-6);
    assert_eq!(bits(&found.noise), bits(&plain.noise));
    // Nothing comes before the first image's step.
    assert_eq!(bits(&found.sum.get(0)?), bits(&plain.sum.get(0)?));
    assert_eq!(codes(&found)?[..h * w], codes(&plain)?[..h * w]);
    assert!(relative(&found.sum.get(1)?, &plain.sum.get(1)?)? > 0.01);
    // One image alone is perturbed as it is among others.
    let alone = Noise::Drawn {
        seed: 3,
        indices: &indices[2..],
    };
    let v = v.narrow(0, 2, 1)?;
    let alone = quantize_until_perturbed(&v, &book, &alone, &schedule, &t[2..], Some(&by))?;
    assert_eq!(bits(&alone.sum), bits(&found.sum.narrow(0, 2, 1)?));
    let given = random(6, &[steps, 1, h, w, d])?;
    let given = Noise::Given(&given);
    assert!(quantize_until_perturbed(&v, &book, &given, &schedule, &t[2..], Some(&by)).is_err());
    Ok(())
}
