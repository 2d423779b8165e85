//! From random words to numbers: uniform in (0,1) and, by Box–Muller, standard normal.
//!
//! Uses only +, −, ×, fused multiply-add, √ and integer operations, each rounded as IEEE 754
//! requires. The same formulas therefore give equal bits on every instruction set, and in CUDA with
//! `__fmaf_rn`, `__fmul_rn`, `__fadd_rn`, `__fsqrt_rn`. The polynomials are near-minimax fits of
//! the relative error (log 5.8e-9, sine 4.0e-9, cosine 4.4e-10); their coefficients were rounded to
//! f32 one by one, and the rest refitted each time.

use super::philox::LANES;

/// Word w of block l is at [w][l], and so is its uniform number.
#[inline(always)]
pub fn uniforms(words: [[u32; LANES]; 4]) -> [[f32; LANES]; 4] {
    let mut out = [[0f32; LANES]; 4];
    for w in 0..4 {
        for l in 0..LANES {
            out[w][l] = unit(words[w][l]);
        }
    }
    out
}

/// Word w of block l is at [w][l]; words 0 and 1 give one pair of normals, 2 and 3 another.
#[inline(always)]
pub fn normals(words: [[u32; LANES]; 4]) -> [[f32; LANES]; 4] {
    let mut out = [[0f32; LANES]; 4];
    for pair in [0, 2] {
        for l in 0..LANES {
            let (a, b) = box_muller(words[pair][l], words[pair + 1][l]);
            out[pair][l] = a;
            out[pair + 1][l] = b;
        }
    }
    out
}

/// u = ((word >> 9) + ½)·2⁻²³, an odd multiple of 2⁻²⁴: exact, never 0 or 1.
#[inline(always)]
pub fn unit(word: u32) -> f32 {
    odd(word) as f32 * (1.0 / 16_777_216.0)
}

/// 2²⁴·u
#[inline(always)]
fn odd(word: u32) -> i32 {
    ((word >> 8) | 1) as i32
}

/// Two normals from two words: √(−2 ln u)·(cos 2πv, sin 2πv).
#[inline(always)]
pub fn box_muller(u: u32, v: u32) -> (f32, f32) {
    let radius = (-2.0 * ln(unit(u))).sqrt();
    let (cos, sin) = cos_sin_turns(v);
    (radius * cos, radius * sin)
}

/// ln x of a normal positive x: x = 2ᵉ·(1+f) with 1+f in [√½, √2), ln x = e·ln 2 + f − f²/2 +
/// f³·L(f).
#[inline(always)]
pub fn ln(x: f32) -> f32 {
    const SQRT_HALF: u32 = 0x3f35_04f3;
    const L: [f32; 8] = [
        0.333_333_3,
        -0.250_008_2,
        0.200_012_42,
        -0.166_234_09,
        0.142_015_8,
        -0.131_596_1,
        0.127_622_17,
        -0.076_364_39,
    ];
    let bits = x.to_bits();
    let exponent = bits.wrapping_sub(SQRT_HALF) as i32 >> 23;
    let f = f32::from_bits(bits.wrapping_sub((exponent << 23) as u32)) - 1.0;
    let tail = f * f * polynomial(L, f).mul_add(f, -0.5);
    let e = exponent as f32;
    // ln 2 in two parts, so that only the last addition has a noticeable rounding error.
    e.mul_add(LN_2_HIGH, e.mul_add(LN_2_LOW, tail) + f)
}

const LN_2_HIGH: f32 = std::f32::consts::LN_2;
const LN_2_LOW: f32 = -1.904_654_2e-9;

/// cos 2πv and sin 2πv of v = `unit(word)`: the nearest quarter turn is subtracted exactly, in
/// integers.
#[inline(always)]
fn cos_sin_turns(word: u32) -> (f32, f32) {
    const TAU_LOW: f32 = -1.748_455_5e-7;
    const SIN: [f32; 3] = [-41.341_67, 81.593_43, -75.427_54];
    const COS: [f32; 4] = [-19.739_208, 64.939_15, -85.424_52, 58.621_06];
    let v = odd(word);
    let quarter = (v + (1 << 21)) >> 22;
    let x = (v - (quarter << 22)) as f32 * (1.0 / 16_777_216.0); // |x| ≤ 1/8, exact
    let y = x * x;
    // 2πx as a sum of two products; the larger part is not rounded until the end.
    let sin = x.mul_add(
        std::f32::consts::TAU,
        x * polynomial(SIN, y).mul_add(y, TAU_LOW),
    );
    let cos = polynomial(COS, y).mul_add(y, 1.0);
    // Quarter turns 0..4: (c, s), (−s, c), (−c, −s), (s, −c), (c, s).
    let odd_quarter = quarter & 1 != 0;
    let (a, b) = if odd_quarter { (sin, cos) } else { (cos, sin) };
    let sign = |x: f32, negative: i32| f32::from_bits(x.to_bits() ^ ((negative as u32) << 31));
    (sign(a, (quarter + 1) >> 1 & 1), sign(b, quarter >> 1 & 1))
}

/// Horner's rule, constant term first.
#[inline(always)]
fn polynomial<const N: usize>(coefficients: [f32; N], x: f32) -> f32 {
    let mut sum = coefficients[N - 1];
    for i in (0..N - 1).rev() {
        sum = sum.mul_add(x, coefficients[i]);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;

    /// Every value of u and v that can be drawn.
    fn words() -> impl ParallelIterator<Item = u32> {
        (0..1u32 << 23).into_par_iter().map(|k| k << 9)
    }

    /// The error in units in the last place of the exact value.
    fn ulps(value: f32, exact: f64) -> f64 {
        let place = (exact.abs() as f32).to_bits() as i32 >> 23;
        (f64::from(value) - exact).abs() / f64::from(place.max(1) - 127 - 23).exp2()
    }

    fn largest(error: impl Fn(u32) -> f64 + Sync + Send) -> f64 {
        words().map(error).reduce(|| 0.0, f64::max)
    }

    #[test]
    fn logarithm_sine_and_cosine_are_within_an_ulp_everywhere() {
        let exact = |w: u32| f64::from(unit(w));
        let ln = largest(|w| ulps(ln(unit(w)), exact(w).ln()));
        let turns = |w: u32| (std::f64::consts::TAU * exact(w)).sin_cos();
        let cos = largest(|w| ulps(cos_sin_turns(w).0, turns(w).1));
        let sin = largest(|w| ulps(cos_sin_turns(w).1, turns(w).0));
        eprintln!("largest error in ulp: ln {ln:.3}, cos {cos:.3}, sin {sin:.3}");
        assert!(ln < 1.0 && cos < 1.0 && sin < 1.0);
    }

    #[test]
    fn a_normal_is_within_three_ulps() {
        let error = largest(|w| {
            let (u, v) = (w, w.wrapping_mul(0x9E37_79B1));
            let (exact_u, exact_v) = (f64::from(unit(u)), f64::from(unit(v)));
            let radius = (-2.0 * exact_u.ln()).sqrt();
            let (sin, cos) = (std::f64::consts::TAU * exact_v).sin_cos();
            let (a, b) = box_muller(u, v);
            ulps(a, radius * cos).max(ulps(b, radius * sin))
        });
        eprintln!("largest error of a normal: {error:.3} ulp");
        assert!(error < 3.0);
    }

    #[test]
    fn the_extreme_words_give_finite_numbers() {
        for u in [0, u32::MAX] {
            assert!(unit(u) > 0.0 && unit(u) < 1.0);
            for v in [0, 1 << 30, 1 << 31, 3 << 30, u32::MAX] {
                let (a, b) = box_muller(u, v);
                assert!(a.is_finite() && b.is_finite() && a.hypot(b) < 5.8);
            }
        }
    }
}
