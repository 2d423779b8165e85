//! An operation's GPU side against its CPU side, on the user's own card: the value and every
//! gradient.

use candle_core::{DType, Device, Result, Tensor, Var};

use super::Gpu;
use crate::ops::Tape;
use crate::ops::tape::plain;
use crate::rng::{Purpose, normal};

/// One comparison: ‖Δ‖/‖reference‖ and what is allowed.
#[derive(Debug, Clone)]
pub struct Row {
    pub name: String,
    pub error: f64,
    pub allowed: f64,
}

impl Row {
    pub fn good(&self) -> bool {
        self.error <= self.allowed // NaN is not
    }
}

/// Results in f32 from the same inputs, and in bf16 from inputs rounded to it.
pub const ALLOWED_F32: f64 = 2e-5;
pub const ALLOWED_BF16: f64 = 1e-2;

/// Standard normal f32 on the CPU, another draw for each `seed`.
pub fn random(seed: u64, shape: &[usize]) -> Result<Tensor> {
    normal(seed, Purpose::Init, &[0], 0, shape, &Device::Cpu)?.squeeze(0)
}

/// ‖found − expected‖ / ‖expected‖, and ‖found‖ where nothing is expected.
pub fn relative(found: &Tensor, expected: &Tensor) -> Result<f64> {
    if found.dims() != expected.dims() {
        candle_core::bail!("found {:?}, expected {:?}", found.dims(), expected.dims());
    }
    let values = |t: &Tensor| -> Result<Vec<f64>> {
        t.to_device(&Device::Cpu)?
            .to_dtype(DType::F64)?
            .flatten_all()?
            .to_vec1()
    };
    let (found, expected) = (values(found)?, values(expected)?);
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(&expected).map(|(f, e)| f - e));
    match norm(&mut expected.iter().copied()) {
        0.0 => Ok(difference),
        size => Ok(difference / size),
    }
}

/// `f` of maps and weights, f32 on the CPU: on the GPU in f32 and with bf16 maps, each twice (the
/// second time must give the same bits) and against the CPU's; value first, then the gradients of
/// all maps and weights under a drawn upstream one.
pub fn compare(
    gpu: &Gpu,
    name: &str,
    maps: &[Tensor],
    weights: &[Tensor],
    f: impl Fn(&[Tensor], &[Tensor]) -> Result<Tensor>,
) -> Result<Vec<Row>> {
    compare_in(&[DType::F32, DType::BF16], gpu, name, maps, weights, f)
}

/// [`compare`] of an operation that knows f32 alone.
pub fn compare_f32(
    gpu: &Gpu,
    name: &str,
    maps: &[Tensor],
    weights: &[Tensor],
    f: impl Fn(&[Tensor], &[Tensor]) -> Result<Tensor>,
) -> Result<Vec<Row>> {
    compare_in(&[DType::F32], gpu, name, maps, weights, f)
}

fn compare_in(
    dtypes: &[DType],
    gpu: &Gpu,
    name: &str,
    maps: &[Tensor],
    weights: &[Tensor],
    f: impl Fn(&[Tensor], &[Tensor]) -> Result<Tensor>,
) -> Result<Vec<Row>> {
    let device = Device::Cuda(gpu.device().clone());
    let mut rows = Vec::new();
    for &dtype in dtypes {
        let round = |t: &Tensor| t.to_dtype(dtype)?.to_dtype(DType::F32);
        let maps = maps.iter().map(round).collect::<Result<Vec<_>>>()?;
        let expected = with_gradients(&maps, weights, &f)?;
        let there = |t: &Tensor, dtype| t.to_device(&device)?.to_dtype(dtype);
        let maps: Vec<Tensor> = maps
            .iter()
            .map(|t| there(t, dtype))
            .collect::<Result<_>>()?;
        let weights: Vec<Tensor> = weights
            .iter()
            .map(|t| there(t, DType::F32))
            .collect::<Result<_>>()?;
        let found = with_gradients(&maps, &weights, &f)?;
        let again = with_gradients(&maps, &weights, &f)?;
        let (suffix, allowed) = match dtype {
            DType::F32 => ("f32", ALLOWED_F32),
            _ => ("bf16", ALLOWED_BF16),
        };
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let part = match i {
                0 => "value".to_string(),
                i => format!("gradient of input {}", i - 1),
            };
            rows.push(Row {
                name: format!("{name}, {suffix}: {part}"),
                error: relative(found, expected)?,
                allowed,
            });
        }
        let mut differing = 0f64;
        for (a, b) in found.iter().zip(&again) {
            differing += relative(a, b)?;
        }
        rows.push(Row {
            name: format!("{name}, {suffix}: the same twice"),
            error: differing,
            allowed: 0.0,
        });
    }
    Ok(rows)
}

/// f's value and its gradients at all inputs.
fn with_gradients(
    maps: &[Tensor],
    weights: &[Tensor],
    f: impl Fn(&[Tensor], &[Tensor]) -> Result<Tensor>,
) -> Result<Vec<Tensor>> {
    let vars =
        |tensors: &[Tensor]| -> Result<Vec<Var>> { tensors.iter().map(Var::from_tensor).collect() };
    let (maps, weights) = (vars(maps)?, vars(weights)?);
    let tensors =
        |vars: &[Var]| -> Vec<Tensor> { vars.iter().map(|var| var.as_tensor().clone()).collect() };
    let tape = Tape::start();
    let y = f(&tensors(&maps), &tensors(&weights))?;
    // Values that bf16 holds, so that both sides have the same.
    let upstream = random(991, y.dims())?.to_dtype(DType::BF16)?;
    let upstream = upstream.to_dtype(DType::F32)?.to_device(y.device())?;
    let mut all = vec![y.detach()];
    let loss = plain([&y], move |[y]| {
        (y.to_dtype(DType::F32)? * &upstream)?.sum_all()
    })?;
    let mut gradients = tape.backward(loss)?;
    for (i, var) in maps.iter().chain(&weights).enumerate() {
        match gradients.remove(var) {
            Some(gradient) => all.push(gradient),
            None => candle_core::bail!("input {i} has no gradient"),
        }
    }
    Ok(all)
}
