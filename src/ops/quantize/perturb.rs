//! Perturbed codes for the generator's examples [ours]: with probability p the code c_s of a step
//! before the example's own gives way to one of the codes nearest to it, as a generator's own
//! mistake would; for any z'_s the next target is defined.
//!
//! The draws of position i of example n at step s are the words of block i of the stream (seed,
//! [`Purpose::Perturb`], n, s): the first decides, the second chooses.

use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;

use crate::rng::{Purpose, Stream};

/// Codes that a code may give way to; a power of two, at which the choice is a word's first bits.
pub const NEAREST: usize = 8;

/// Which codes may give way to which, and how often they do.
#[derive(Debug, Clone)]
pub struct Perturbation {
    /// A word below it perturbs: p·2³².
    pub(super) below: u32,
    /// The codes nearest to each, by falling nearness [K,8].
    pub(super) nearest: Vec<u32>,
}

impl Perturbation {
    /// For a frozen codebook e [K,d] of more than eight codes, and p below 1.
    pub fn new(embedding: &Tensor, probability: f64) -> Result<Self> {
        let embedding = embedding.detach().to_device(&Device::Cpu)?;
        let rows = embedding.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        if rows.len() <= NEAREST {
            candle_core::bail!(
                "perturbed codes need a codebook of more than {NEAREST}, found {}",
                rows.len()
            );
        }
        let nearest = (0..rows.len()).into_par_iter();
        Ok(Self {
            below: (probability * 4_294_967_296.0) as u32,
            nearest: nearest.flat_map_iter(|k| nearest_to(&rows, k)).collect(),
        })
    }

    /// Perturbs the codes [h·w] that step `step` gave an example.
    pub(super) fn apply(&self, codes: &mut [u32], seed: u64, index: u64, step: usize) {
        let stream = Stream::new(seed, Purpose::Perturb, index, step as u32);
        for (position, code) in codes.iter_mut().enumerate() {
            let [decides, chooses, ..] = stream.words(position as u32);
            if decides < self.below {
                let which = (chooses >> (32 - NEAREST.ilog2())) as usize;
                *code = self.nearest[*code as usize * NEAREST + which];
            }
        }
    }
}

/// The codes nearest to code `k`, itself left out; of equals the first.
fn nearest_to(rows: &[Vec<f32>], k: usize) -> impl Iterator<Item = u32> + use<> {
    let distance = |other: &[f32]| -> f64 {
        let pairs = rows[k].iter().zip(other);
        pairs
            .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2))
            .sum()
    };
    let others = rows.iter().enumerate().filter(|(other, _)| *other != k);
    let mut all: Vec<(f64, u32)> = others
        .map(|(other, row)| (distance(row), other as u32))
        .collect();
    let order = |a: &(f64, u32), b: &(f64, u32)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
    all.select_nth_unstable_by(NEAREST - 1, order);
    all.truncate(NEAREST);
    all.sort_unstable_by(order);
    all.into_iter().map(|(_, code)| code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_gives_way_to_its_neighbours_as_often_as_asked() -> Result<()> {
        // On a line, where the nearest of code k are those beside it.
        let line: Vec<f32> = (0..20).map(|k| k as f32).collect();
        let line = Tensor::from_vec(line, (20, 1), &Device::Cpu)?;
        let perturbation = Perturbation::new(&line, 0.25)?;
        assert_eq!(
            perturbation.nearest[10 * NEAREST..11 * NEAREST],
            [9, 11, 8, 12, 7, 13, 6, 14]
        );
        assert_eq!(
            perturbation.nearest[..NEAREST],
            [1, 2, 3, 4, 5, 6, 7, 8],
            "at the end of the line"
        );
        let mut counts = [0usize; 20];
        let (examples, positions) = (200, 64);
        for index in 0..examples {
            let mut codes = vec![10u32; positions];
            perturbation.apply(&mut codes, 5, index, 3);
            let mut again = vec![10u32; positions];
            perturbation.apply(&mut again, 5, index, 3);
            assert_eq!(codes, again);
            codes.iter().for_each(|&c| counts[c as usize] += 1);
        }
        let total = (examples as usize * positions) as f64;
        let close = |found: usize, p: f64| {
            let spread = (total * p * (1.0 - p)).sqrt();
            (found as f64 - total * p).abs() < 4.5 * spread
        };
        assert!(close(counts[10], 0.75), "{counts:?}");
        for neighbour in [6, 7, 8, 9, 11, 12, 13, 14] {
            assert!(close(counts[neighbour], 0.25 / 8.0), "{counts:?}");
        }
        assert!(Perturbation::new(&line.narrow(0, 0, 8)?, 0.25).is_err());
        Ok(())
    }
}
