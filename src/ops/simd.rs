//! Loops compiled for the instruction set of the machine that runs them, and the f32 functions that
//! they call.
//!
//! [`vectorized`] runs a closure compiled for the widest instruction set of the processor. The
//! functions below are inlined into it and become vector instructions in plain loops over slices.
//! They use `mul_add` and leave no evaluation order to the compiler, so the bits are the same on
//! every instruction set. NaN stays NaN.

use pulp::Arch;

/// Number of partial sums of a reduction over a row; fixed, so that the summation order is too.
const LANES: usize = 16;

/// Runs `f`, compiled for this processor. Write the closure as `#[inline(always)] || ..`.
#[inline(always)]
pub(super) fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    Arch::new().dispatch(f)
}

/// eˣ to about 1e-7 relative, over the whole range: 0 below −104, infinity above 88.8.
///
/// x = n·ln 2 + r with |r| ≤ ½·ln 2; eʳ by a polynomial (minimax, degree 6), 2ⁿ by its exponent in
/// two halves, so that subnormal and very large results are correct.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let (p, n) = exp_parts(x, -105.0, 89.0);
    let half = n >> 1;
    p * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// eʳ and n of x, clamped to `low`..`high`.
#[inline(always)]
fn exp_parts(x: f32, low: f32, high: f32) -> (f32, i32) {
    // Adding 1.5·2²³ rounds to an integer, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts; the first is short enough that its product with n is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = if x > high { high } else { x };
    let x = if x < low { low } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_HIGH, x);
    let r = n.mul_add(-LN2_LOW, r);
    let p = 1.987_569_1e-4_f32;
    let p = p.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 0.5);
    let p = p.mul_add(r * r, r) + 1.0;
    (
        p,
        (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32),
    )
}

/// 2ⁿ for −126 ≤ n ≤ 127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// Every x becomes exp(scale·x − max), where `max` is the largest scale·x; returns their sum, added
/// in a fixed order. Values below e⁻⁸⁷ of the largest are clamped to it.
#[inline(always)]
pub(super) fn exponentials(xs: &mut [f32], scale: f32, max: f32) -> f32 {
    #[inline(always)]
    fn each(x: &mut f32, sum: &mut f32, scale: f32, max: f32) {
        let (p, n) = exp_parts(x.mul_add(scale, -max), -87.0, 87.0);
        *x = p * power_of_two(n);
        *sum += *x;
    }
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = xs.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            each(x, lane, scale, max);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        each(x, lane, scale, max);
    }
    fold(lanes, |a, b| a + b)
}

/// σ(x) = 1/(1 + e⁻ˣ); saturates at e⁻⁸⁷ ≈ 1.6e-38.
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    let (p, n) = exp_parts(-x, -87.0, 87.0);
    1.0 / power_of_two(n).mul_add(p, 1.0)
}

/// x·σ(x).
#[inline(always)]
pub(super) fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

/// The derivative of x·σ(x).
#[inline(always)]
pub(super) fn silu_derivative(x: f32) -> f32 {
    let s = sigmoid(x);
    (x * (1.0 - s)).mul_add(s, s)
}

/// Σ f(x), in a fixed order.
#[inline(always)]
pub(super) fn sum(xs: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = xs.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f(x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f(x);
    }
    fold(lanes, |a, b| a + b)
}

/// Σ f(x, y), in a fixed order.
#[inline(always)]
pub(super) fn sum2(xs: &[f32], ys: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let ((x_chunks, x_rest), (y_chunks, y_rest)) =
        (xs.as_chunks::<LANES>(), ys.as_chunks::<LANES>());
    for (x_chunk, y_chunk) in x_chunks.iter().zip(y_chunks) {
        for ((lane, &x), &y) in lanes.iter_mut().zip(x_chunk).zip(y_chunk) {
            *lane += f(x, y);
        }
    }
    for ((lane, &x), &y) in lanes.iter_mut().zip(x_rest).zip(y_rest) {
        *lane += f(x, y);
    }
    fold(lanes, |a, b| a + b)
}

/// Σ f(x, y, z) for `N` functions at once, in a fixed order.
#[inline(always)]
pub(super) fn sum3<const N: usize>(
    xs: &[f32],
    ys: &[f32],
    zs: &[f32],
    f: impl Fn(f32, f32, f32) -> [f32; N],
) -> [f32; N] {
    let mut lanes = [[0f32; LANES]; N];
    let (x_chunks, x_rest) = xs.as_chunks::<LANES>();
    let (y_chunks, y_rest) = ys.as_chunks::<LANES>();
    let (z_chunks, z_rest) = zs.as_chunks::<LANES>();
    for ((x, y), z) in x_chunks.iter().zip(y_chunks).zip(z_chunks) {
        for i in 0..LANES {
            let values = f(x[i], y[i], z[i]);
            for (lanes, value) in lanes.iter_mut().zip(values) {
                lanes[i] += value;
            }
        }
    }
    for (i, ((&x, &y), &z)) in x_rest.iter().zip(y_rest).zip(z_rest).enumerate() {
        for (lanes, value) in lanes.iter_mut().zip(f(x, y, z)) {
            lanes[i] += value;
        }
    }
    lanes.map(|lanes| fold(lanes, |a, b| a + b))
}

/// The maximum, −∞ for an empty slice; NaN is skipped.
#[inline(always)]
pub(super) fn max(xs: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = xs.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, x);
    }
    fold(lanes, larger)
}

/// [`max`], compiled for this processor.
pub fn largest(xs: &[f32]) -> f32 {
    vectorized(
        #[inline(always)]
        || max(xs),
    )
}

/// Halves the number of lanes until one is left.
#[inline(always)]
fn fold(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worst(f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64, from: f32, to: f32) -> f64 {
        let steps = 400_000;
        let xs = (0..=steps).map(|i| from + (to - from) * i as f32 / steps as f32);
        xs.map(|x| (f64::from(f(x)) / exact(f64::from(x)) - 1.0).abs())
            .fold(0.0, f64::max)
    }

    #[test]
    fn exp_is_accurate_to_1e7_relative() {
        assert!(worst(exp, f64::exp, -87.0, 88.7) < 1.0e-7);
        assert!(worst(exp, f64::exp, -1.0, 1.0) < 1.0e-7);
    }

    #[test]
    fn exp_reaches_zero_infinity_and_nan() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e9), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
        // Subnormal: a tenth of the smallest normal number, accurate to the spacing of subnormal
        // numbers.
        let (found, expected) = (exp(-89.6), (-89.6_f32 as f64).exp());
        assert!((f64::from(found) - expected).abs() < 1.5e-45, "{found:e}");
    }

    #[test]
    fn sigmoid_and_silu_are_accurate() {
        assert!(worst(sigmoid, |x| 1.0 / (1.0 + (-x).exp()), -80.0, 80.0) < 2.5e-7);
        assert!(worst(silu, |x| x / (1.0 + (-x).exp()), 1e-3, 80.0) < 2.5e-7);
        assert!(worst(silu, |x| x / (1.0 + (-x).exp()), -80.0, -1e-3) < 2.5e-7);
    }

    #[test]
    fn reductions_take_every_element() {
        for n in [0, 1, 5, 16, 33, 100] {
            let xs: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let expected = (n * (n.max(1) - 1) / 2) as f32;
            assert_eq!(sum(&xs, |x| x), expected);
            assert_eq!(sum2(&xs, &xs, |x, y| x + y), 2.0 * expected);
            assert_eq!(
                sum3(&xs, &xs, &xs, |x, y, z| [x + y + z, x]),
                [3.0 * expected, expected]
            );
            assert_eq!(
                max(&xs),
                if n == 0 {
                    f32::NEG_INFINITY
                } else {
                    n as f32 - 1.0
                }
            );
        }
    }

    #[test]
    fn instruction_sets_give_equal_bits() {
        let xs: Vec<f32> = (0..1000).map(|i| (i as f32 - 500.0) * 0.07).collect();
        let plain: Vec<f32> = xs.iter().map(|&x| silu(x)).collect();
        let mut wide = vec![0.0; xs.len()];
        let total = vectorized(
            #[inline(always)]
            || {
                for (o, &x) in wide.iter_mut().zip(&xs) {
                    *o = silu(x);
                }
                sum(&wide, |x| x)
            },
        );
        assert_eq!(plain, wide);
        assert_eq!(sum(&plain, |x| x).to_bits(), total.to_bits());
    }
}
