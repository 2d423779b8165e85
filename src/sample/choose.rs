//! The last step of Algorithm 2 (Eq. 8): logits become codes, a row (position) at a time.
//!
//! Order: guidance v̂ = c + λ(c − u), temperature τ·v̂, top-k, top-p, Gumbel:
//! ĉ = argmax(τ·v̂ − log(−log u)). One thread a row, so that a row's code depends on that row only.

use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;

use crate::ops::{is_serial, largest, read};
use crate::rng::largest_with_gumbel;

/// What is done to a row of logits before its largest is taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// λ_t; 0 expects no unconditional half.
    pub lambda: f32,
    /// τ = 1 / temperature.
    pub tau: f32,
    /// Only the k most likely codes; those that tie with the k-th stay.
    pub top_k: Option<usize>,
    /// Only the most likely codes that together reach probability p.
    pub top_p: Option<f32>,
}

impl Choice {
    /// For logits that are guided already.
    pub fn guided(self) -> Self {
        Self {
            lambda: 0.0,
            ..self
        }
    }
}

/// Logits [B,N,K], with λ ≠ 0 conditional then unconditional [2B,N,K], to codes u32 [B,N].
///
/// `uniform` [B,N,K] in (0,1) makes the Gumbel noise; without it the most likely code is taken.
/// Errors: shapes that do not belong together, a logit that is not finite.
pub fn choose(logits: &Tensor, uniform: Option<&Tensor>, choice: &Choice) -> Result<Tensor> {
    let (rows, n, k) = logits.dims3()?;
    let halves = if choice.lambda == 0.0 { 1 } else { 2 };
    if rows % halves != 0 {
        candle_core::bail!("guided logits come in two halves, found {rows} images");
    }
    let b = rows / halves;
    if let Some(u) = uniform
        && u.dims() != [b, n, k]
    {
        candle_core::bail!("uniforms: expected {:?}, found {:?}", [b, n, k], u.shape());
    }
    let device = logits.device();
    let (logits, uniform) = (host(logits)?, uniform.map(host).transpose()?);
    // Without uniforms, the second is not looked at.
    let inputs = [&logits, uniform.as_ref().unwrap_or(&logits)];
    let codes = read(inputs, |[logits, uniforms]| {
        let (conditional, unconditional) = logits.split_at(b * n * k);
        let code = |(row, bounds): &mut (Vec<f32>, Vec<f32>), i: usize| {
            let at = i * k..(i + 1) * k;
            row.clear();
            row.extend_from_slice(&conditional[at.clone()]);
            if choice.lambda != 0.0 {
                guide(row, &unconditional[at.clone()], choice.lambda);
            }
            row.iter_mut().for_each(|x| *x *= choice.tau);
            // Without an early exit, so that the loop is vectorized.
            if row.iter().fold(false, |bad, x| bad | !x.is_finite()) {
                return None;
            }
            if let Some(k) = choice.top_k {
                keep_largest(row, k);
            }
            if let Some(p) = choice.top_p {
                keep_nucleus(row, p);
            }
            match uniform {
                Some(_) => largest_with_gumbel(row, &uniforms[at], bounds).map(|i| i as u32),
                None => argmax(row),
            }
        };
        if is_serial() {
            let mut room = Default::default();
            return (0..b * n).map(|i| code(&mut room, i)).collect();
        }
        let rows = (0..b * n).into_par_iter();
        rows.map_init(Default::default, code).collect::<Vec<_>>()
    })?;
    if let Some(i) = codes.iter().position(Option::is_none) {
        candle_core::bail!(
            "image {} of the batch, position {}: its logits are not finite (are the weights damaged?)",
            i / n,
            i % n
        );
    }
    Tensor::from_vec(codes.into_iter().flatten().collect(), (b, n), device)
}

fn host(x: &Tensor) -> Result<Tensor> {
    x.to_device(&Device::Cpu)?.to_dtype(DType::F32)
}

fn guide(conditional: &mut [f32], unconditional: &[f32], lambda: f32) {
    for (c, u) in conditional.iter_mut().zip(unconditional) {
        *c += (*c - u) * lambda;
    }
}

/// Top-k: a code that is out gets −∞.
fn keep_largest(row: &mut [f32], k: usize) {
    if !(1..row.len()).contains(&k) {
        return;
    }
    let mut sorted = row.to_vec();
    let (_, least, _) = sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    let least = *least;
    row.iter_mut()
        .filter(|x| **x < least)
        .for_each(|x| *x = f32::NEG_INFINITY);
}

/// Top-p: keeps the most likely codes up to the one with which they reach probability `p`.
fn keep_nucleus(row: &mut [f32], p: f32) {
    if p >= 1.0 {
        return;
    }
    let mut order: Vec<usize> = (0..row.len()).collect();
    // A stable sort: of equal logits the first comes first.
    order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
    let largest = row[order[0]];
    let weight = |i: usize| f64::from(row[i] - largest).exp();
    let needed = f64::from(p) * order.iter().map(|&i| weight(i)).sum::<f64>();
    let mut reached = 0.0;
    let kept = order
        .iter()
        .take_while(|&&i| {
            let more = reached < needed;
            reached += weight(i);
            more
        })
        .count();
    for &i in &order[kept.max(1)..] {
        row[i] = f32::NEG_INFINITY;
    }
}

/// The first of the largest; none where no logit is above −∞, or one is +∞. NaN is no number to be
/// the largest.
fn argmax(row: &[f32]) -> Option<u32> {
    let largest = largest(row);
    let at = row.iter().position(|&x| x == largest)?;
    largest.is_finite().then_some(at as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, uniform};

    const PLAIN: Choice = Choice {
        lambda: 0.0,
        tau: 1.0,
        top_k: None,
        top_p: None,
    };

    fn codes(row: &[f32], uniform: Option<&[f32]>, choice: &Choice) -> Result<Vec<u32>> {
        let k = uniform.map_or(row.len(), <[f32]>::len);
        let make = |x: &[f32]| Tensor::from_slice(x, (x.len() / k, 1, k), &Device::Cpu);
        choose(&make(row)?, uniform.map(make).transpose()?.as_ref(), choice)?
            .flatten_all()?
            .to_vec1()
    }

    /// How often each code is drawn for one row of logits.
    fn frequencies(row: &[f32], choice: &Choice) -> Result<Vec<f64>> {
        const N: usize = 40_000;
        let k = row.len();
        let logits = Tensor::from_slice(row, (1, 1, k), &Device::Cpu)?
            .broadcast_as((1, N, k))?
            .contiguous()?;
        let u = uniform(3, Purpose::Gumbel, &[0], 1, &[N, k], &Device::Cpu)?;
        let mut counts = vec![0.0; k];
        for code in choose(&logits, Some(&u), choice)?
            .flatten_all()?
            .to_vec1::<u32>()?
        {
            counts[code as usize] += 1.0 / N as f64;
        }
        Ok(counts)
    }

    fn softmax(row: &[f32]) -> Vec<f64> {
        let e: Vec<f64> = row.iter().map(|&x| f64::from(x).exp()).collect();
        e.iter().map(|x| x / e.iter().sum::<f64>()).collect()
    }

    #[test]
    fn without_uniforms_the_first_of_the_largest_is_taken() -> Result<()> {
        assert_eq!(codes(&[0.0, 2.0, 2.0, -1.0], None, &PLAIN)?, [1]);
        Ok(())
    }

    #[test]
    fn guidance_goes_beyond_the_conditional_logits() -> Result<()> {
        // c + λ(c − u): 1 + 2(1 − 1) = 1 against 0.5 + 2(0.5 − 0) = 1.5.
        let halves = Tensor::new(&[[[1.0f32, 0.5]], [[1.0, 0.0]]], &Device::Cpu)?;
        let guided = Choice {
            lambda: 2.0,
            ..PLAIN
        };
        assert_eq!(choose(&halves, None, &guided)?.to_vec2::<u32>()?, [[1]]);
        assert_eq!(choose(&halves, None, &PLAIN)?.to_vec2::<u32>()?, [[0], [0]]);
        Ok(())
    }

    #[test]
    fn gumbel_noise_draws_from_the_tempered_softmax() -> Result<()> {
        let row = [0.3, 1.5, -1.0, 0.0];
        for tau in [1.0f32, 2.0] {
            let found = frequencies(&row, &Choice { tau, ..PLAIN })?;
            let expected = softmax(&row.map(|x| x * tau));
            for (f, e) in found.iter().zip(&expected) {
                // Five standard deviations.
                let bound = 5.0 * (e * (1.0 - e) / 40_000.0).sqrt();
                assert!((f - e).abs() < bound, "τ {tau}: {found:?} {expected:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn top_k_and_top_p_keep_the_most_likely_codes_only() -> Result<()> {
        // Probabilities 0.11, 0.61, 0.05, 0.22 (rounded).
        let row = [0.3f32, 2.0, -0.5, 1.0];
        let kept = |choice: Choice| -> Result<Vec<bool>> {
            Ok(frequencies(&row, &choice)?
                .iter()
                .map(|f| *f > 0.0)
                .collect())
        };
        let top_k = |k| Choice {
            top_k: Some(k),
            ..PLAIN
        };
        let top_p = |p| Choice {
            top_p: Some(p),
            ..PLAIN
        };
        assert_eq!(kept(top_k(2))?, [false, true, false, true]);
        assert_eq!(kept(top_k(9))?, [true; 4]);
        assert_eq!(kept(top_p(0.5))?, [false, true, false, false]);
        assert_eq!(kept(top_p(0.7))?, [false, true, false, true]);
        assert_eq!(kept(top_p(0.9))?, [true, true, false, true]);
        assert_eq!(kept(top_p(1.0))?, [true; 4]);
        // Top-p looks at what top-k left: 0.61 of 0.83 is more than 0.7.
        let both = Choice {
            top_k: Some(2),
            ..top_p(0.7)
        };
        assert_eq!(kept(both)?, [false, true, false, false]);
        Ok(())
    }

    #[test]
    fn damaged_logits_are_named() {
        let error = codes(&[f32::NAN, f32::NAN], None, &PLAIN).unwrap_err();
        assert!(error.to_string().contains("position 0"), "{error}");
        for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            assert!(codes(&[bad, 0.0], None, &PLAIN).is_err());
        }
    }
}
