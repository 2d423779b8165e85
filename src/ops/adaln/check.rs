//! Checks AdaLN's kernels: with a branch that is added and without one, rows of several warps,
//! images of one block of rows and of two.

use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};
use half::bf16;

use super::cuda::{AdalnGradient, AdalnSizes, Gated, Residual, adaln_backward, adaln_forward};
use super::{gate_residual, rms_norm_modulate};
use crate::ops::cuda::compare::Row;
use crate::ops::cuda::operands::{
    Floats, Halves, compare, compare_f32, flat, relative, row, share_that_differs, unwritten,
    unwritten_f32,
};
use crate::ops::cuda::{Buffer, Gpu};

const EPS: f64 = 1e-6;

/// 1/rms of a row that was rounded to bf16.
const ALLOWED_RSTD: f64 = 1e-2;

pub fn check(gpu: &Arc<Gpu>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (batch, tokens, width) in [(2, 5, 264), (3, 35, 776)] {
        for branch in [true, false] {
            let s = AdalnSizes {
                batch,
                tokens,
                width,
                stride: 8 * width,
            };
            rows.extend(one(gpu, s, branch)?);
        }
    }
    Ok(rows)
}

fn one(gpu: &Gpu, s: AdalnSizes, branch: bool) -> Result<Vec<Row>> {
    let (b, n, c, stride) = (s.batch, s.tokens, s.width, s.stride);
    let map = || [b, n, c];
    let [x, h, dsum, dy] = [1, 2, 3, 4].map(|seed| Halves::new(gpu, seed, &map()));
    let (x, h, dsum, dy) = (x?, h?, dsum?, dy?);
    let modulations = Floats::new(gpu, 5, &[b, stride])?;
    let at = |which: usize| modulations.view().tail(which * c);
    let out = || unwritten(gpu, b * n * c);
    let (sum, y, rstd) = (out()?, out()?, unwritten_f32(gpu, b * n)?);
    let gated = branch.then(|| Gated {
        branch: h.view(),
        gate: at(2),
    });
    let from = Residual {
        x: x.view(),
        add: gated,
    };
    adaln_forward(
        gpu,
        s,
        EPS as f32,
        from,
        [at(0), at(1)],
        sum.view_mut(),
        y.view_mut(),
        rstd.view_mut(),
    )?;
    let (dx, dbranch) = (out()?, out()?);
    let partials = unwritten_f32(gpu, s.partials())?;
    let dmodulations = unwritten(gpu, b * stride)?;
    let dmodulation = |which: usize| dmodulations.view_mut().tail(which * c);
    let backward = |x: &Buffer<bf16>, add: bool, dx: &Buffer<bf16>| {
        let gradient = AdalnGradient {
            dsum: Some(dsum.view()),
            dy: dy.view(),
            x: x.view(),
            add,
            rstd: rstd.view(),
            scale: at(1),
            gated,
            dx: dx.view_mut(),
            dbranch: dbranch.view_mut(),
            partials: partials.view_mut(),
            dshift: dmodulation(0),
            dscale: dmodulation(1),
            dgate: branch.then(|| dmodulation(2)),
        };
        adaln_backward(gpu, s, gradient)
    };
    // What is compared with the reference comes from x before the branch, if there is one; from the
    // sum comes the same.
    let from_sum = out()?;
    let whole = if branch { &sum } else { &x.on_gpu };
    backward(whole, false, &from_sum)?;
    backward(&x.on_gpu, branch, &dx)?;

    let var = |x: &Tensor| Var::from_tensor(&x.contiguous()?);
    let (x_in, h_in) = (var(&x.values)?, var(&h.values)?);
    let [shift, scale, gate] = [0, 1, 2].map(|i| var(&modulations.values.narrow(1, i * c, c)?));
    let (shift, scale, gate) = (shift?, scale?, gate?);
    let sum_of = match branch {
        true => gate_residual(&x_in, &gate, &h_in)?,
        false => x_in.as_tensor().clone(),
    };
    let y_of = rms_norm_modulate(&sum_of, &shift, &scale, EPS)?;
    let loss = ((&sum_of * &dsum.values)? + (&y_of * &dy.values)?)?.sum_all()?;
    let gradients = loss.backward()?;
    let rms = ((sum_of.sqr()?.mean_keepdim(2)? + EPS)?.sqrt()?).recip()?;

    let kind = if branch { "a branch" } else { "no branch" };
    let name = |what: &str| format!("adaln, {b}×{n} rows of {c}, {kind}: {what}");
    let mut rows = vec![
        compare(name("y"), &y, &flat(&y_of)?)?,
        compare_f32(name("1/rms"), &rstd, &flat(&rms)?, ALLOWED_RSTD)?,
        compare(name("gradient of x"), &dx, &gradient(&gradients, &x_in)?)?,
    ];
    // The modulations' gradients, out of rows of all modulations.
    let part = |which: usize| -> Result<Vec<f32>> {
        let all = dmodulations.read()?;
        let of = |image: usize| &all[image * stride + which * c..][..c];
        Ok((0..b).flat_map(of).map(|x| x.to_f32()).collect())
    };
    let mut modulation = |what: &str, which: usize, of: &Var| -> Result<()> {
        let found = relative(&part(which)?, &gradient(&gradients, of)?);
        rows.push(row(name(what), found, 1e-2));
        Ok(())
    };
    modulation("gradient of the shift", 0, &shift)?;
    modulation("gradient of the scale", 1, &scale)?;
    if branch {
        modulation("gradient of the gate", 2, &gate)?;
        rows.push(compare(name("sum"), &sum, &flat(&sum_of)?)?);
        let bits = |x: &Buffer<bf16>| -> Result<Vec<u32>> {
            Ok(x.read()?.iter().map(|x| x.to_bits().into()).collect())
        };
        let differ = share_that_differs(&bits(&dx)?, &bits(&from_sum)?);
        let what =
            "gradient of x with the branch added again, bits that differ from that of the sum";
        rows.push(row(name(what), differ, 0.0));
        rows.push(compare(
            name("gradient of the branch"),
            &dbranch,
            &gradient(&gradients, &h_in)?,
        )?);
    }
    Ok(rows)
}

fn gradient(gradients: &GradStore, of: &Var) -> Result<Vec<f32>> {
    gradients.get(of).map_or(Ok(Vec::new()), flat)
}
