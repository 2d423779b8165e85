//! Code that GroupNorm and BatchNorm share. The CPU version, here: a matrix [P,C] of positions and
//! channels, normalized by the moments over its rows and over groups of adjacent columns, scaled,
//! shifted and activated.
//!
//! y = act((x − μ_g)·r_g·weight_c + bias_c), r = 1/√(σ² + eps). GroupNorm calls it once per image,
//! BatchNorm once with one column per group. The GPU version is `cuda.rs`.

#[cfg(feature = "cuda")]
pub(super) mod cuda;
#[cfg(feature = "cuda")]
pub(super) mod left;
#[cfg(feature = "cuda")]
mod small;

use super::activation::fused::{Activation, Identity, LeakyRelu, Pointwise, Silu};
use super::{blocks, simd};

/// Mean and biased variance of every group, in two passes over `x` [P,C].
pub(super) fn moments(x: &[f32], c: usize, groups: usize) -> (Vec<f32>, Vec<f32>) {
    let (rows, width) = (x.len() / c, c / groups);
    let of_groups = |columns: Vec<f64>| -> Vec<f32> {
        let values = (rows * width) as f64;
        let groups = columns.chunks_exact(width);
        groups
            .map(|g| (g.iter().sum::<f64>() / values) as f32)
            .collect()
    };
    let mean = of_groups(blocks::sum(rows, c, c, &|range, sums| {
        let x = &x[range.start * c..range.end * c];
        simd::vectorized(
            #[inline(always)]
            || {
                add_rows(x, c, sums, |_, x| x);
            },
        )
    }));
    let centre = spread(&mean, width);
    let variance = of_groups(blocks::sum(rows, c, c, &|range, sums| {
        let x = &x[range.start * c..range.end * c];
        simd::vectorized(
            #[inline(always)]
            || {
                let centre = &centre[..c];
                add_rows(x, c, sums, |i, x| (x - centre[i]) * (x - centre[i]));
            },
        )
    }));
    (mean, variance)
}

/// Adds f(column, value) of every row to the column's sum, four rows at a time.
#[inline(always)]
fn add_rows(x: &[f32], c: usize, sums: &mut [f32], f: impl Fn(usize, f32) -> f32) {
    let sums = &mut sums[..c];
    let fours = x.chunks_exact(4 * c);
    for row in fours.remainder().chunks_exact(c) {
        for i in 0..c {
            sums[i] += f(i, row[i]);
        }
    }
    for four in fours {
        let (first, second) = four.split_at(2 * c);
        let (x0, x1) = first.split_at(c);
        let (x2, x3) = (&second[..c], &second[c..2 * c]);
        for i in 0..c {
            sums[i] += (f(i, x0[i]) + f(i, x1[i])) + (f(i, x2[i]) + f(i, x3[i]));
        }
    }
}

/// 1/√(σ² + eps).
pub(super) fn reciprocal_deviation(variance: &[f32], eps: f64) -> Vec<f32> {
    let r = |&v: &f32| (1.0 / (f64::from(v) + eps).sqrt()) as f32;
    variance.iter().map(r).collect()
}

/// Expands one value per group to one value per column.
fn spread(groups: &[f32], width: usize) -> Vec<f32> {
    groups
        .iter()
        .flat_map(|&g| std::iter::repeat_n(g, width))
        .collect()
}

/// What normalizes a matrix: moments per group, weight and bias per column.
#[derive(Clone, Copy)]
pub(super) struct Norm<'a> {
    pub mean: &'a [f32],
    /// 1/√(σ² + eps)
    pub r: &'a [f32],
    pub weight: &'a [f32],
    pub bias: &'a [f32],
    pub activation: Activation,
}

impl Norm<'_> {
    /// y from `x`, both [P,C].
    pub(super) fn forward(&self, x: &[f32], y: &mut [f32]) {
        match self.activation {
            Activation::None => self.forward_with(x, y, Identity),
            Activation::Silu => self.forward_with(x, y, Silu),
            Activation::LeakyRelu(slope) => self.forward_with(x, y, LeakyRelu(slope as f32)),
        }
    }

    fn forward_with(&self, x: &[f32], y: &mut [f32], activation: impl Pointwise) {
        let c = self.weight.len();
        let width = c / self.mean.len();
        let (mean, mut scale) = (spread(self.mean, width), spread(self.r, width));
        for (scale, weight) in scale.iter_mut().zip(self.weight) {
            *scale *= weight;
        }
        blocks::fill(y, c, &|first, y| {
            let x = &x[first * c..][..y.len()];
            simd::vectorized(
                #[inline(always)]
                || {
                    let (mean, scale, bias) = (&mean[..c], &scale[..c], &self.bias[..c]);
                    for (y, x) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
                        for i in 0..c {
                            y[i] = activation.value((x[i] - mean[i]).mul_add(scale[i], bias[i]));
                        }
                    }
                },
            )
        });
    }

    /// dx from `x` and `dy`, all [P,C]; returns the gradients of weight and bias, [C] each.
    pub(super) fn backward(&self, x: &[f32], dy: &[f32], dx: &mut [f32]) -> (Vec<f64>, Vec<f64>) {
        match self.activation {
            Activation::None => self.backward_with(x, dy, dx, Identity),
            Activation::Silu => self.backward_with(x, dy, dx, Silu),
            Activation::LeakyRelu(slope) => self.backward_with(x, dy, dx, LeakyRelu(slope as f32)),
        }
    }

    /// With x̂ = (x − μ)·r and dz = dy·act′(z): dweight = Σ dz·x̂, dbias = Σ dz (over the rows),
    /// and dx = r·(weight·dz − a − x̂·b) with a, b the group's means of weight·dz and weight·dz·x̂.
    fn backward_with(
        &self,
        x: &[f32],
        dy: &[f32],
        dx: &mut [f32],
        activation: impl Pointwise,
    ) -> (Vec<f64>, Vec<f64>) {
        let c = self.weight.len();
        let width = c / self.mean.len();
        let (mean, r) = (spread(self.mean, width), spread(self.r, width));
        // dz is stored in dx, so that the activation's derivative is computed only once.
        let mut dbias = blocks::fill_and_sum(dx, c, 2 * c, &|first, dz, sums| {
            let range = first * c..first * c + dz.len();
            let (x, dy) = (&x[range.clone()], &dy[range]);
            let (sum, sum_normal) = sums.split_at_mut(c);
            simd::vectorized(
                #[inline(always)]
                || {
                    let (mean, r) = (&mean[..c], &r[..c]);
                    let (weight, bias) = (&self.weight[..c], &self.bias[..c]);
                    let (sum, sum_normal) = (&mut sum[..c], &mut sum_normal[..c]);
                    for ((dz, x), dy) in dz
                        .chunks_exact_mut(c)
                        .zip(x.chunks_exact(c))
                        .zip(dy.chunks_exact(c))
                    {
                        for i in 0..c {
                            let normal = (x[i] - mean[i]) * r[i];
                            let z = normal.mul_add(weight[i], bias[i]);
                            dz[i] = dy[i] * activation.derivative(z);
                            sum[i] += dz[i];
                            sum_normal[i] = dz[i].mul_add(normal, sum_normal[i]);
                        }
                    }
                },
            )
        });
        let dweight = dbias.split_off(c);
        let a = self.group_means(&dbias, dx.len());
        let b = self.group_means(&dweight, dx.len());
        blocks::fill(dx, c, &|first, dx| {
            let x = &x[first * c..][..dx.len()];
            simd::vectorized(
                #[inline(always)]
                || {
                    let (mean, r, weight) = (&mean[..c], &r[..c], &self.weight[..c]);
                    let (a, b) = (&a[..c], &b[..c]);
                    for (dx, x) in dx.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
                        for i in 0..c {
                            let normal = (x[i] - mean[i]) * r[i];
                            let centred = dx[i].mul_add(weight[i], -a[i]);
                            dx[i] = r[i] * normal.mul_add(-b[i], centred);
                        }
                    }
                },
            )
        });
        (dweight, dbias)
    }

    /// Σ weight·column over a group, divided by the group's number of values, as one value per
    /// column.
    fn group_means(&self, columns: &[f64], elements: usize) -> Vec<f32> {
        let width = columns.len() / self.mean.len();
        let values = (elements / self.mean.len()) as f64;
        let pairs = columns
            .chunks_exact(width)
            .zip(self.weight.chunks_exact(width));
        let means: Vec<f32> = pairs
            .map(|(columns, weights)| {
                let products = columns.iter().zip(weights).map(|(c, &w)| c * f64::from(w));
                (products.sum::<f64>() / values) as f32
            })
            .collect();
        spread(&means, width)
    }
}
