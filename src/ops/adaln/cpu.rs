//! Modulated RMSNorm and the gated residual on the CPU. The forward pass is parallel over blocks of
//! rows, the backward pass over images, because each image has its own sums.

use crate::ops::{blocks, simd, slices};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};

pub(super) struct RmsNormModulate {
    pub eps: f64,
}

/// 1/√(mean(x²) + eps) of a row.
#[inline(always)]
pub(super) fn reciprocal_rms(x: &[f32], eps: f64) -> f32 {
    let mean = simd::sum(x, |x| x * x) / x.len() as f32;
    (1.0 / (f64::from(mean) + eps).sqrt()) as f32
}

/// x·r·(1 + scale) + shift of a row, or of as many of its columns as `y` has.
#[inline(always)]
pub(super) fn modulate(y: &mut [f32], x: &[f32], r: f32, shift: &[f32], scale: &[f32]) {
    let c = y.len();
    let (x, shift, scale) = (&x[..c], &shift[..c], &scale[..c]);
    for i in 0..c {
        y[i] = (x[i] * r).mul_add(1.0 + scale[i], shift[i]);
    }
}

impl CustomOp3 for RmsNormModulate {
    fn name(&self) -> &'static str {
        "rms_norm_modulate"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        shift: &CpuStorage,
        shift_layout: &Layout,
        scale: &CpuStorage,
        scale_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, n, c) = layout.shape().dims3()?;
        let x = slices::of(x, layout)?;
        let shift = slices::of(shift, shift_layout)?;
        let scale = slices::of(scale, scale_layout)?;
        let y = blocks::filled(x.len(), c, &|first, y| {
            let x = &x[first * c..][..y.len()];
            simd::vectorized(
                #[inline(always)]
                || {
                    let rows = y.chunks_exact_mut(c).zip(x.chunks_exact(c));
                    for (row, (y, x)) in (first..).zip(rows) {
                        let image = row / n * c;
                        let r = reciprocal_rms(x, self.eps);
                        modulate(y, x, r, &shift[image..], &scale[image..]);
                    }
                },
            )
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    /// With x̂ = x·r and g = dy·(1 + scale): dx = r·(g − x̂·mean(g·x̂)), dshift = Σ dy, dscale = Σ
    /// dy·x̂.
    fn bwd(
        &self,
        x: &Tensor,
        shift: &Tensor,
        scale: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (_, n, c) = x.dims3()?;
        let (dx, dshift, dscale) = slices::read([x, scale, dy], |[x, scale, dy]| {
            let (dx, sums) = blocks::images(x.len(), n * c, &|b, dx| {
                let range = b * n * c..(b + 1) * n * c;
                let (x, dy) = (&x[range.clone()], &dy[range]);
                self.image_backward(x, &scale[b * c..][..c], dy, dx)
            });
            let (dshift, dscale): (Vec<_>, Vec<_>) = sums.into_iter().unzip();
            (dx, dshift.concat(), dscale.concat())
        })?;
        Ok((
            slices::gradient(x, dx)?,
            slices::gradient(shift, slices::narrowed(dshift))?,
            slices::gradient(scale, slices::narrowed(dscale))?,
        ))
    }
}

impl RmsNormModulate {
    /// One image: fills dx [N,C], returns dshift and dscale, [C] each.
    fn image_backward(
        &self,
        x: &[f32],
        scale: &[f32],
        dy: &[f32],
        dx: &mut [f32],
    ) -> (Vec<f64>, Vec<f64>) {
        let c = scale.len();
        let mut dshift = blocks::fill_and_sum(dx, c, 2 * c, &|first, dx, sums| {
            let range = first * c..first * c + dx.len();
            let (x, dy) = (&x[range.clone()], &dy[range]);
            let (dshift, dscale) = sums.split_at_mut(c);
            simd::vectorized(
                #[inline(always)]
                || {
                    let scale = &scale[..c];
                    let (dshift, dscale) = (&mut dshift[..c], &mut dscale[..c]);
                    let rows = dx.chunks_exact_mut(c).zip(x.chunks_exact(c));
                    for ((dx, x), dy) in rows.zip(dy.chunks_exact(c)) {
                        let r = reciprocal_rms(x, self.eps);
                        let [product] = simd::sum3(dy, scale, x, |dy, s, x| [dy * (1.0 + s) * x]);
                        let mean = product * r / c as f32;
                        for i in 0..c {
                            let normal = x[i] * r;
                            dshift[i] += dy[i];
                            dscale[i] = dy[i].mul_add(normal, dscale[i]);
                            dx[i] = r * normal.mul_add(-mean, dy[i] * (1.0 + scale[i]));
                        }
                    }
                },
            )
        });
        let dscale = dshift.split_off(c);
        (dshift, dscale)
    }
}

pub(super) struct GateResidual;

impl CustomOp3 for GateResidual {
    fn name(&self) -> &'static str {
        "gate_residual"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        gate: &CpuStorage,
        gate_layout: &Layout,
        branch: &CpuStorage,
        branch_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, n, c) = layout.shape().dims3()?;
        let x = slices::of(x, layout)?;
        let gate = slices::of(gate, gate_layout)?;
        let branch = slices::of(branch, branch_layout)?;
        let y = blocks::filled(x.len(), c, &|first, y| {
            let range = first * c..first * c + y.len();
            let (x, branch) = (&x[range.clone()], &branch[range]);
            simd::vectorized(
                #[inline(always)]
                || {
                    let rows = x.chunks_exact(c).zip(branch.chunks_exact(c));
                    for (row, (y, (x, branch))) in (first..).zip(y.chunks_exact_mut(c).zip(rows)) {
                        let gate = &gate[row / n * c..][..c];
                        for i in 0..c {
                            y[i] = gate[i].mul_add(branch[i], x[i]);
                        }
                    }
                },
            )
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    /// dx = dy, dgate = Σ dy·branch, dbranch = gate·dy.
    fn bwd(
        &self,
        x: &Tensor,
        gate: &Tensor,
        branch: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (_, n, c) = x.dims3()?;
        let (dgate, dbranch) = slices::read([gate, branch, dy], |[gate, branch, dy]| {
            let (dbranch, dgate) = blocks::images(branch.len(), n * c, &|b, dbranch| {
                let range = b * n * c..(b + 1) * n * c;
                let (branch, dy) = (&branch[range.clone()], &dy[range]);
                gate_backward(&gate[b * c..][..c], branch, dy, dbranch)
            });
            (dgate.concat(), dbranch)
        })?;
        Ok((
            x.track_op().then(|| dy.clone()),
            slices::gradient(gate, slices::narrowed(dgate))?,
            slices::gradient(branch, dbranch)?,
        ))
    }
}

/// One image: fills dbranch [N,C], returns dgate [C].
fn gate_backward(gate: &[f32], branch: &[f32], dy: &[f32], dbranch: &mut [f32]) -> Vec<f64> {
    let c = gate.len();
    blocks::fill_and_sum(dbranch, c, c, &|first, dbranch, dgate| {
        let range = first * c..first * c + dbranch.len();
        let (branch, dy) = (&branch[range.clone()], &dy[range]);
        simd::vectorized(
            #[inline(always)]
            || {
                let (gate, dgate) = (&gate[..c], &mut dgate[..c]);
                let rows = dbranch.chunks_exact_mut(c).zip(branch.chunks_exact(c));
                for ((dbranch, branch), dy) in rows.zip(dy.chunks_exact(c)) {
                    for i in 0..c {
                        dgate[i] = dy[i].mul_add(branch[i], dgate[i]);
                        dbranch[i] = gate[i] * dy[i];
                    }
                }
            },
        )
    })
}
