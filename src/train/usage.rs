//! How many codes each timestep uses, and how evenly: the perplexity, exp of the entropy of their
//! frequencies.

use candle_core::{DType, Device, Result, Tensor};

/// How often each code was chosen at each t since the last log line.
#[derive(Debug, Clone)]
pub struct Usage {
    /// [T][K]
    counts: Vec<Vec<u64>>,
}

impl Usage {
    pub fn new(steps: usize, codes: usize) -> Self {
        Self {
            counts: vec![vec![0; codes]; steps],
        }
    }

    /// Adds what [`choices`] counted.
    pub fn add(&mut self, choices: &[Vec<u64>]) {
        for (counts, more) in self.counts.iter_mut().zip(choices) {
            counts.iter_mut().zip(more).for_each(|(n, m)| *n += m);
        }
    }

    /// The number of codes chosen at least once, per timestep.
    pub fn used(&self) -> Vec<usize> {
        let used = |counts: &Vec<u64>| counts.iter().filter(|&&n| n > 0).count();
        self.counts.iter().map(used).collect()
    }

    /// exp(−Σ p·ln p) per timestep: 1 if one code is always chosen, K if all are chosen equally
    /// often, NaN if none was.
    pub fn perplexity(&self) -> Vec<f64> {
        let perplexity = |counts: &Vec<u64>| {
            // Undefined if nothing was chosen: the NaN becomes null in the log.
            let total = counts.iter().sum::<u64>() as f64;
            if total == 0.0 {
                return f64::NAN;
            }
            let entropy: f64 = counts
                .iter()
                .filter(|&&n| n > 0)
                .map(|&n| n as f64 / total)
                .map(|p| -p * p.ln())
                .sum();
            entropy.exp()
        };
        self.counts.iter().map(perplexity).collect()
    }

    pub fn clear(&mut self) {
        self.counts.iter_mut().for_each(|row| row.fill(0));
    }

    /// [T,K] i64, for the checkpoint.
    pub fn tensor(&self) -> Result<Tensor> {
        let flat: Vec<i64> = self.counts.iter().flatten().map(|&n| n as i64).collect();
        let steps = self.counts.len();
        Tensor::from_vec(flat, (steps, self.counts[0].len()), &Device::Cpu)
    }

    /// Restores what [`Usage::tensor`] returned.
    pub fn restore(&mut self, tensor: &Tensor) -> Result<()> {
        let rows = tensor.to_dtype(DType::I64)?.to_vec2::<i64>()?;
        for (counts, row) in self.counts.iter_mut().zip(rows) {
            counts.clear();
            counts.extend(row.iter().map(|&n| n as u64));
        }
        Ok(())
    }
}

/// How often each of `size` codes was chosen at each t, [T][K], in maps u32 [T,B,h,w].
pub fn choices<'a>(
    maps: impl IntoIterator<Item = &'a Tensor>,
    steps: usize,
    size: usize,
) -> Result<Vec<Vec<u64>>> {
    let mut counts = vec![vec![0; size]; steps];
    for codes in maps {
        let rows = codes.flatten_from(1)?.to_vec2::<u32>()?;
        for (counts, row) in counts.iter_mut().zip(rows) {
            row.into_iter().for_each(|code| counts[code as usize] += 1);
        }
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_code_has_perplexity_one_and_all_alike_have_all() -> Result<()> {
        let mut usage = Usage::new(2, 4);
        assert!(usage.perplexity().iter().all(|p| p.is_nan()));
        let codes = Tensor::new(&[[[[2u32, 2, 2, 2]]], [[[0, 1, 2, 3]]]], &Device::Cpu)?;
        usage.add(&choices([&codes], 2, 4)?);
        assert_eq!(usage.used(), [1, 4]);
        let perplexity = usage.perplexity();
        assert!((perplexity[0] - 1.0).abs() < 1e-12 && (perplexity[1] - 4.0).abs() < 1e-12);
        let mut other = Usage::new(2, 4);
        other.restore(&usage.tensor()?)?;
        assert_eq!(other.counts, usage.counts);
        Ok(())
    }
}
