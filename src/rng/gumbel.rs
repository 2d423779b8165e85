//! The largest of a row with Gumbel noise, argmax(x − ln(−ln u)), with logarithms only of those
//! that can be the largest.
//!
//! An upper bound of the noise, with v = 1 − u, which is exact for this module's uniforms: −ln u ≥
//! v, so the noise is at most −ln v; and ln m ≥ (m − 1)·ln 2 for 1 ≤ m ≤ 2, so −ln v ≤ −(e + m −
//! 1)·ln 2 for v = m·2ᵉ, which the bits of v give. If the noise is large the bound is at most 0.06
//! above it, which leaves a handful of a row's thousands.

use pulp::{Arch, Simd, WithSimd};

use super::transform::ln;

/// Values compared at a time.
const LANES: usize = 16;

/// The first of the largest row[i] − ln(−ln uniform[i]), uniforms in (0,1); bit-identical on every
/// machine, and on the GPU. None if no value is above −∞. `bounds` is scratch space.
pub fn largest_with_gumbel(row: &[f32], uniform: &[f32], bounds: &mut Vec<f32>) -> Option<usize> {
    bounds.resize(row.len(), 0.0);
    Arch::new().dispatch(Largest {
        row,
        uniform,
        bounds,
    })
}

struct Largest<'a> {
    row: &'a [f32],
    uniform: &'a [f32],
    bounds: &'a mut [f32],
}

/// At least −ln(−ln u).
#[inline(always)]
fn bound(u: f32) -> f32 {
    const LN2: f32 = std::f32::consts::LN_2;
    const ONE_BIT: f32 = 1.0 / 8_388_608.0; // of a fraction
    ((1.0 - u).to_bits() as i32 as f32).mul_add(-ONE_BIT * LN2, 127.0 * LN2)
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

impl Largest<'_> {
    #[inline(always)]
    fn value(&self, i: usize) -> f32 {
        self.row[i] - ln(-ln(self.uniform[i]))
    }
}

impl WithSimd for Largest<'_> {
    type Output = Option<usize>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Option<usize> {
        let inputs = self.row.iter().zip(self.uniform);
        for (b, (&x, &u)) in self.bounds.iter_mut().zip(inputs) {
            *b = x + bound(u);
        }
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for chunk in self.bounds.chunks(LANES) {
            for (lane, &b) in lanes.iter_mut().zip(chunk) {
                *lane = larger(*lane, b);
            }
        }
        let highest = lanes.into_iter().fold(f32::NEG_INFINITY, larger);
        let at = self.bounds.iter().position(|&b| b == highest)?;
        // Nothing below this can be the largest. The slack is many times the rounding error of the
        // bounds and the values.
        let reached = self.value(at);
        let least = reached - (reached.abs() + 32.0) * 4e-6;
        let (mut largest, mut found) = (f32::NEG_INFINITY, None);
        for (c, chunk) in self.bounds.chunks(LANES).enumerate() {
            if !chunk.iter().fold(false, |any, &b| any | (b >= least)) {
                continue;
            }
            for (i, _) in (c * LANES..).zip(chunk).filter(|(_, b)| **b >= least) {
                let value = self.value(i);
                if value > largest {
                    (largest, found) = (value, Some(i));
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Stream};

    fn uniforms(index: u64, n: usize) -> Vec<f32> {
        let mut u = vec![0.0; n];
        Stream::new(7, Purpose::Gumbel, index, 1).fill_uniform(&mut u);
        u
    }

    #[test]
    fn the_bound_is_above_the_noise_and_near_it_where_that_is_large() {
        let step = 2f32.powi(-24);
        let ends = [step, 3.0 * step, 1.0 - 3.0 * step, 1.0 - step];
        for u in uniforms(0, 100_000).into_iter().chain(ends) {
            let noise = -(-f64::from(u).ln()).ln();
            let above = f64::from(bound(u)) - noise;
            assert!(above > -1e-5, "{u}: {above}");
            assert!(noise < 3.0 || above < 0.1, "{u}: {above}");
        }
    }

    #[test]
    fn the_largest_is_the_one_of_all_values() {
        let mut bounds = Vec::new();
        for i in 0..2000u64 {
            let n = [1, 5, 16, 37, 512, 4096][i as usize % 6];
            let spread = [0.0, 1e-6, 1.0, 30.0, 1e4][i as usize % 5];
            let mut row: Vec<f32> = uniforms(2 * i, n).iter().map(|u| u * spread).collect();
            if i % 3 == 0 {
                row.iter_mut()
                    .step_by(2)
                    .for_each(|x| *x = f32::NEG_INFINITY);
            }
            let mut u = uniforms(2 * i + 1, n);
            if i % 4 == 0 {
                u.fill(0.75); // ties
            }
            let values = row.iter().zip(&u).map(|(x, &u)| x - ln(-ln(u)));
            let mut expected = (f32::NEG_INFINITY, None);
            for (i, value) in values.enumerate() {
                if value > expected.0 {
                    expected = (value, Some(i));
                }
            }
            let found = largest_with_gumbel(&row, &u, &mut bounds);
            assert_eq!(found, expected.1, "{n} values, spread {spread}");
        }
    }
}
