//! Algorithm 1 line by line in candle operations, the slow reference, and the differentiable
//! lookup.

#[cfg(test)]
use candle_core::DType;
use candle_core::{Result, Tensor};

use super::{Codebook, Examples, Noise, Perturbation, Quantized, Schedule};
use crate::ops::{Padding, add, arrange, conv2d};

/// v' = e_c + conv3×3(e_c)
pub fn lookup(codebook: &Codebook, codes: &Tensor) -> Result<Tensor> {
    let (dims, d) = (codes.dims(), codebook.embedding.dim(1)?);
    let [front @ .., h, w] = dims else {
        candle_core::bail!("lookup: codes must be [..,h,w], found {dims:?}");
    };
    let (images, h, w) = (front.iter().product::<usize>(), *h, *w);
    let e = crate::ops::lookup(&codebook.embedding, &codes.flatten_all()?)?;
    let e = arrange::reshape(&e, (images, h, w, d))?;
    let e = match &codebook.bias {
        None => e,
        Some((weight, bias)) => add(&e, &conv2d(&e, weight, Some(bias), 1, Padding::same(1))?)?,
    };
    arrange::reshape(&e, [dims, &[d]].concat())
}

/// Rows whose scores are in memory at a time.
const ROWS: usize = 16 * 1024;

/// argmax_k v·e_k − ½|e_k|², which is argmin_k ‖v − e_k‖² up to the rounding of f32: v [..,d] → u32
/// [..]
pub fn nearest_by_products(v: &Tensor, embedding: &Tensor) -> Result<Tensor> {
    let front = &v.dims()[..v.rank() - 1];
    let rows = v.flatten_to(v.rank() - 2)?.contiguous()?;
    let half_squares = (embedding.sqr()?.sum(1)? * 0.5)?;
    let by_column = embedding.t()?.contiguous()?;
    let mut codes = Vec::new();
    for start in (0..rows.dim(0)?).step_by(ROWS) {
        let part = rows.narrow(0, start, ROWS.min(rows.dim(0)? - start))?;
        let scores = part.matmul(&by_column)?.broadcast_sub(&half_squares)?;
        codes.push(scores.argmax(1)?);
    }
    Tensor::cat(&codes, 0)?.reshape(front)
}

/// argmin_k ‖v − e_k‖² in f64: v [..,d] → u32 [..]
#[cfg(test)]
pub fn nearest(v: &Tensor, embedding: &Tensor) -> Result<Tensor> {
    let (k, d) = embedding.dims2()?;
    let front = &v.dims()[..v.rank() - 1];
    let rows = v.to_dtype(DType::F64)?.reshape(((), 1, d))?;
    let codes = embedding.to_dtype(DType::F64)?.reshape((1, k, d))?;
    rows.broadcast_sub(&codes)?
        .sqr()?
        .sum(2)?
        .argmin(1)?
        .reshape(front)
}

/// Algorithm 1 with `nearest` (v [B,h,w,d], e [K,d]) → codes [B,h,w]; in f64 it is the reference.
pub fn recurrent_quantize(
    v: &Tensor,
    codebook: &Codebook,
    noise: &Noise,
    schedule: &Schedule,
    nearest: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Quantized> {
    recurrent_quantize_perturbed(v, codebook, noise, schedule, None, nearest)
}

/// The codes are those before they are perturbed, the sums of those after it.
fn recurrent_quantize_perturbed(
    v: &Tensor,
    codebook: &Codebook,
    noise: &Noise,
    schedule: &Schedule,
    perturbation: Option<&Perturbation>,
    nearest: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Quantized> {
    let (b, h, w, d) = v.dims4()?;
    let mut residual = v.clone();
    let mut sum = v.zeros_like()?;
    let (mut codes, mut sums, mut noisy) = (Vec::new(), vec![sum.clone()], Vec::new());
    for t in 1..=schedule.steps() {
        let (alpha, beta) = (schedule.alpha[t - 1], schedule.beta[t - 1]);
        let eps = noise.step(t, [b, h, w, d], v.device())?;
        let v_t = ((&residual * f64::from(alpha))? + (eps * f64::from(beta))?)?;
        let c = nearest(&v_t, &codebook.embedding)?;
        let q = match (perturbation, noise) {
            (Some(perturbation), Noise::Drawn { seed, indices }) => {
                let mut taken = c.flatten_all()?.to_vec1::<u32>()?;
                for (codes, &index) in taken.chunks_exact_mut(h * w).zip(*indices) {
                    perturbation.apply(codes, *seed, index, t);
                }
                lookup(codebook, &Tensor::from_vec(taken, c.shape(), c.device())?)?
            }
            _ => lookup(codebook, &c)?,
        };
        residual = (residual - &q)?;
        sum = (sum + &q)?;
        codes.push(c);
        sums.push(sum.clone());
        noisy.push(v_t);
    }
    Ok(Quantized {
        codes: Tensor::stack(&codes, 0)?,
        sums: Tensor::stack(&sums, 0)?,
        noisy: Tensor::stack(&noisy, 0)?,
    })
}

pub fn quantize_until(
    v: &Tensor,
    codebook: &Codebook,
    noise: &Noise,
    schedule: &Schedule,
    t: &[u32],
    perturbation: Option<&Perturbation>,
    nearest: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Examples> {
    let (b, h, w, d) = v.dims4()?;
    let all = recurrent_quantize_perturbed(v, codebook, noise, schedule, perturbation, nearest)?;
    let each = |f: &dyn Fn(usize, usize) -> Result<Tensor>| -> Result<Tensor> {
        let rows: Vec<Tensor> = (0..b).map(|i| f(t[i] as usize, i)).collect::<Result<_>>()?;
        Tensor::stack(&rows, 0)
    };
    Ok(Examples {
        noise: each(&|t, i| noise.step(t, [b, h, w, d], v.device())?.get(i))?,
        sum: each(&|t, i| all.sums.get(t - 1)?.get(i))?,
        codes: each(&|t, i| all.codes.get(t - 1)?.get(i))?,
    })
}

/// L_quant in candle operations; gradients by autograd.
#[cfg(test)]
pub fn quantization_loss(
    v: &Tensor,
    lookup: &Tensor,
    noise: &Tensor,
    schedule: &Schedule,
    gamma: &[f32],
    delta: f64,
) -> Result<Tensor> {
    let mut total = Tensor::zeros((), DType::F32, v.device())?;
    let mut residual = v.clone();
    for (t, &weight) in gamma.iter().enumerate() {
        let v_t = ((&residual * f64::from(schedule.alpha[t]))?
            + (noise.get(t)? * f64::from(schedule.beta[t]))?)?;
        let q = lookup.get(t)?;
        let book = (v_t.detach() - &q)?.sqr()?.mean_all()?;
        let commit = (&v_t - q.detach())?.sqr()?.mean_all()?;
        total = (total + ((book + (commit * delta)?)? * f64::from(weight))?)?;
        residual = (residual - q.detach())?;
    }
    Ok(total)
}
