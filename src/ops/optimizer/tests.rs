use candle_core::{Device, Result, Tensor, Var};

use super::*;
use crate::rng::{Purpose, Stream};

const STEP: AdamStep = AdamStep {
    lr: 0.01,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    weight_decay: 0.03,
    step: 1,
    grad_scale: 0.5,
    ema_decay: Some(0.9),
};

/// Parameter, moments and average.
struct State {
    param: Var,
    m: Var,
    v: Var,
    ema: Var,
}

impl State {
    fn new(param: &Tensor) -> Result<Self> {
        Ok(Self {
            param: Var::from_tensor(param)?,
            m: Var::from_tensor(&param.zeros_like()?)?,
            v: Var::from_tensor(&param.zeros_like()?)?,
            ema: Var::from_tensor(&param.copy()?)?,
        })
    }

    fn step(&self, grad: &Tensor, step: &AdamStep) -> Result<()> {
        let ema = step.ema_decay.map(|_| &self.ema);
        adam_step(&self.param, grad, &self.m, &self.v, ema, step)
    }

    fn values(&self) -> Result<[Vec<f32>; 4]> {
        let flat = |var: &Var| var.flatten_all()?.to_vec1::<f32>();
        Ok([
            flat(&self.param)?,
            flat(&self.m)?,
            flat(&self.v)?,
            flat(&self.ema)?,
        ])
    }
}

fn random(index: u64, n: usize) -> Result<Tensor> {
    let mut values = vec![0f32; n];
    Stream::new(17, Purpose::Init, index, 0).fill_normal(&mut values);
    Tensor::from_vec(values, n, &Device::Cpu)
}

/// Ten steps on eleven numbers that are all exact in f32.
fn trajectory(step: AdamStep) -> Result<[Vec<f32>; 4]> {
    let tensor = |f: &dyn Fn(i32) -> i32, by: f32| {
        let values: Vec<f32> = (0..11).map(|i| f(i) as f32 / by).collect();
        Tensor::from_vec(values, 11, &Device::Cpu)
    };
    let state = State::new(&tensor(&|i| (i * 5) % 7 - 3, 4.0)?)?;
    for n in 1..=10 {
        let grad = tensor(&|i| (i * 7 + n * 13) % 17 - 8, 8.0)?;
        let step = AdamStep {
            step: n as u64,
            ..step
        };
        state.step(&grad, &step)?;
    }
    state.values()
}

fn assert_close(found: &[Vec<f32>; 4], expected: [[f32; 11]; 4]) {
    for ((found, expected), name) in found.iter().zip(expected).zip(["p", "m", "v", "ema"]) {
        let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
        let error = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b))
            / norm(&mut expected.into_iter());
        assert!(error < 3e-7, "{name}: {error}");
    }
}

#[test]
fn ten_steps_of_adamw_are_pytorchs() -> Result<()> {
    // torch.optim.AdamW(lr=0.01, betas=(0.9, 0.95), weight_decay=0.03); ema.lerp_(p, 0.1).
    let expected = [
        [
            -0.76751274,
            0.50298035,
            -0.015041096,
            -0.47311607,
            0.7612148,
            0.21204607,
            -0.20760915,
            -0.7683941,
            0.5071113,
            0.0333112,
            -0.54108584,
        ],
        [
            0.031560823,
            -0.058974605,
            0.05196614,
            -0.005136776,
            -0.01933761,
            0.07226842,
            -0.06400415,
            0.0066112373,
            0.03557082,
            -0.029449057,
            0.01735102,
        ],
        [
            0.035411686,
            0.041754745,
            0.032911565,
            0.043303244,
            0.034001447,
            0.0390752,
            0.037477877,
            0.03504853,
            0.04387399,
            0.032049082,
            0.042719282,
        ],
        [
            -0.7608268,
            0.50081795,
            -0.0060175164,
            -0.48644137,
            0.75731295,
            0.23137908,
            -0.22890858,
            -0.76080406,
            0.5059565,
            0.015583426,
            -0.5217742,
        ],
    ];
    assert_close(&trajectory(STEP)?, expected);
    Ok(())
}

#[test]
fn ten_steps_of_adam_are_pytorchs() -> Result<()> {
    // torch.optim.Adam(lr=0.01, betas=(0.5, 0.9)); ema.lerp_(p, 0.1).
    let expected = [
        [
            -0.7631609,
            0.5141106,
            -0.019939018,
            -0.48375848,
            0.7664956,
            0.219484,
            -0.2175378,
            -0.7606636,
            0.4996986,
            0.02572832,
            -0.5221653,
        ],
        [
            0.30895996,
            -0.5123291,
            0.21655273,
            0.24194336,
            -0.14978027,
            0.4338379,
            -0.39160156,
            0.075805664,
            0.3668213,
            -0.033203125,
            0.02746582,
        ],
        [
            0.23362385, 0.2694709, 0.21400993, 0.28269914, 0.21494803, 0.25958118, 0.23872621,
            0.2286543, 0.29030767, 0.20275135, 0.28198606,
        ],
        [
            -0.7565122,
            0.502955,
            -0.0060156626,
            -0.4908015,
            0.7583181,
            0.23676856,
            -0.23373799,
            -0.7578374,
            0.502889,
            0.014229762,
            -0.51531154,
        ],
    ];
    let adam = AdamStep {
        beta1: 0.5,
        beta2: 0.9,
        weight_decay: 0.0,
        grad_scale: 1.0,
        ..STEP
    };
    assert_close(&trajectory(adam)?, expected);
    Ok(())
}

#[test]
fn the_pass_is_the_references_at_any_size() -> Result<()> {
    for n in [1, 7, 16_384, 50_001] {
        for ema_decay in [None, Some(0.99)] {
            let (fast, slow) = (State::new(&random(0, n)?)?, State::new(&random(0, n)?)?);
            for index in 1..4 {
                let grad = random(index, n)?;
                let step = AdamStep {
                    step: index,
                    ema_decay,
                    ..STEP
                };
                fast.step(&grad, &step)?;
                let ema = ema_decay.map(|_| &slow.ema);
                reference::adam_step(&slow.param, &grad, &slow.m, &slow.v, ema, &step)?;
            }
            for (a, b) in fast.values()?.iter().zip(slow.values()?) {
                let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs());
                assert!(worst.fold(0.0, f32::max) < 1e-6, "{n}");
            }
        }
    }
    Ok(())
}

#[test]
fn the_step_gives_equal_bits_for_any_number_of_threads() -> Result<()> {
    let n = 100_003;
    let run = |threads: usize| -> Result<[Vec<f32>; 4]> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().expect("a pool of threads").install(|| {
            let state = State::new(&random(0, n)?)?;
            state.step(&random(1, n)?, &STEP)?;
            state.values()
        })
    };
    assert_eq!(run(1)?, run(3)?);
    Ok(())
}

#[test]
fn the_global_norm_is_that_of_all_values_together() -> Result<()> {
    let grads = [
        random(1, 50_001)?,
        random(2, 3)?.reshape((3, 1))?,
        random(3, 16_385)?,
    ];
    let exact: f64 = grads
        .iter()
        .map(|g| g.flatten_all()?.to_vec1::<f32>())
        .collect::<Result<Vec<_>>>()?
        .iter()
        .flatten()
        .map(|x| f64::from(*x).powi(2))
        .sum();
    let norm = global_norm(&grads)?.to_scalar::<f64>()?;
    assert!((norm / exact.sqrt() - 1.0).abs() < 1e-12);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3);
    let other = pool
        .build()
        .expect("a pool of threads")
        .install(|| global_norm(&grads))?
        .to_scalar::<f64>()?;
    assert_eq!(norm.to_bits(), other.to_bits());
    Ok(())
}

#[test]
fn a_gradient_of_another_shape_is_refused_by_name() -> Result<()> {
    let state = State::new(&random(0, 6)?)?;
    let error = state.step(&random(1, 5)?, &STEP).unwrap_err().to_string();
    assert!(
        error.contains("the gradient") && error.contains("[6]"),
        "{error}"
    );
    let uncounted = AdamStep { step: 0, ..STEP };
    assert!(state.step(&random(1, 6)?, &uncounted).is_err());
    Ok(())
}

#[test]
fn many_tensors_at_once_are_stepped_as_each_alone_with_its_own_weight_decay() -> Result<()> {
    let (grads, decays) = ([random(1, 7)?, random(2, 5)?], [0.0, 0.3]);
    let states = || -> Result<Vec<State>> {
        let params = [random(3, 7)?, random(4, 5)?];
        params.iter().map(State::new).collect()
    };
    let (together, alone) = (states()?, states()?);
    let trained = |((state, grad), weight_decay)| -> Trained {
        let state: &State = state;
        Trained {
            param: &state.param,
            grad,
            m: &state.m,
            v: &state.v,
            ema: Some(&state.ema),
            weight_decay,
        }
    };
    let all: Vec<Trained> = together
        .iter()
        .zip(&grads)
        .zip(decays)
        .map(trained)
        .collect();
    adam_step_all(&all, &STEP)?;
    for (((state, grad), weight_decay), together) in
        alone.iter().zip(&grads).zip(decays).zip(&together)
    {
        let step = AdamStep {
            weight_decay,
            ..STEP
        };
        state.step(grad, &step)?;
        assert_eq!(state.values()?, together.values()?);
    }
    Ok(())
}
