//! What the checks of single kernels share: the same values on the GPU and on the CPU, outputs that
//! start as NaN, and comparisons.

use candle_core::{Device, Result, Tensor};
use half::bf16;

use super::compare::{Row, random};
use super::{Buffer, Gpu, View, ViewMut};

/// bf16 outputs against f32.
const ALLOWED: f64 = 1e-2;
/// f32 outputs of the same inputs.
pub const ALLOWED_F32: f64 = 1e-5;

/// Random bf16 values on the GPU, and as f32 on the CPU.
pub struct Halves {
    pub on_gpu: Buffer<bf16>,
    pub values: Tensor,
}

impl Halves {
    pub fn new(gpu: &Gpu, seed: u64, shape: &[usize]) -> Result<Self> {
        Self::of(gpu, &random(seed, shape)?)
    }

    /// The values, rounded.
    pub fn of(gpu: &Gpu, values: &Tensor) -> Result<Self> {
        let rounded: Vec<bf16> = flat(values)?.into_iter().map(bf16::from_f32).collect();
        let back: Vec<f32> = rounded.iter().map(|x| x.to_f32()).collect();
        Ok(Self {
            on_gpu: Buffer::from_host(gpu, &rounded)?,
            values: Tensor::from_vec(back, values.shape(), &Device::Cpu)?,
        })
    }

    pub fn view(&self) -> View<'_, bf16> {
        self.on_gpu.view()
    }

    pub fn view_mut(&self) -> ViewMut<'_, bf16> {
        self.on_gpu.view_mut()
    }
}

/// Random f32 values on the GPU, and on the CPU.
pub struct Floats {
    pub on_gpu: Buffer<f32>,
    pub values: Tensor,
}

impl Floats {
    pub fn new(gpu: &Gpu, seed: u64, shape: &[usize]) -> Result<Self> {
        let values = random(seed, shape)?;
        Ok(Self {
            on_gpu: Buffer::from_host(gpu, &flat(&values)?)?,
            values,
        })
    }

    pub fn view(&self) -> View<'_, f32> {
        self.on_gpu.view()
    }
}

/// An output that a kernel must write whole.
pub fn unwritten(gpu: &Gpu, len: usize) -> Result<Buffer<bf16>> {
    Buffer::from_host(gpu, &vec![bf16::NAN; len])
}

pub fn unwritten_f32(gpu: &Gpu, len: usize) -> Result<Buffer<f32>> {
    Buffer::from_host(gpu, &vec![f32::NAN; len])
}

pub fn flat(x: &Tensor) -> Result<Vec<f32>> {
    x.flatten_all()?.to_vec1()
}

pub fn row(name: impl Into<String>, error: f64, allowed: f64) -> Row {
    Row {
        name: name.into(),
        error,
        allowed,
    }
}

/// A bf16 output, widened.
pub fn widened(found: &Buffer<bf16>) -> Result<Vec<f32>> {
    Ok(found.read()?.iter().map(|x| x.to_f32()).collect())
}

/// A bf16 output against its reference.
pub fn compare(name: String, found: &Buffer<bf16>, expected: &[f32]) -> Result<Row> {
    Ok(row(name, relative(&widened(found)?, expected), ALLOWED))
}

/// The same of an f32 output.
pub fn compare_f32(
    name: String,
    found: &Buffer<f32>,
    expected: &[f32],
    allowed: f64,
) -> Result<Row> {
    Ok(row(name, relative(&found.read()?, expected), allowed))
}

/// A bf16 output that is one f32 value rounded.
pub fn same_bits(name: String, found: &Buffer<bf16>, expected: &[f32]) -> Result<Row> {
    let bits = |x: bf16| u32::from(x.to_bits());
    let found: Vec<u32> = found.read()?.into_iter().map(bits).collect();
    let expected: Vec<u32> = expected.iter().map(|&x| bits(bf16::from_f32(x))).collect();
    Ok(row(name, share_that_differs(&found, &expected), 0.0))
}

pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// The share of places where two lists differ.
pub fn share_that_differs(a: &[u32], b: &[u32]) -> f64 {
    a.iter().zip(b).filter(|(a, b)| a != b).count() as f64 / a.len() as f64
}

/// ‖found − reference‖ / ‖reference‖
pub fn relative(found: &[f32], reference: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let difference: f64 = found
        .iter()
        .zip(reference)
        .map(|(&a, &b)| square(f64::from(a) - f64::from(b)))
        .sum();
    let norm: f64 = reference.iter().map(|&b| square(f64::from(b))).sum();
    (difference / norm.max(f64::MIN_POSITIVE)).sqrt()
}

/// The GPU with every kind of kernel that it runs, as one of so many multiprocessors.
pub fn kinds(gpu: &Gpu, multiprocessors: u32) -> Vec<(&'static str, Gpu)> {
    let mut kinds = vec![("general", gpu.taken_for(true, multiprocessors))];
    if gpu.is_hopper() {
        kinds.push(("sm_90's", gpu.taken_for(false, multiprocessors)));
    }
    kinds
}
