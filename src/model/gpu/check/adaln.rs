//! AdaLN's kernels alone: with a branch that is added and without one, rows of several warps, images of one block of rows and of two.

use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};
use half::bf16;

use super::Row;
use super::kernel::{Floats, Halves, NONE, compare, compare_f32, flat, unwritten, unwritten_f32};
use crate::model::gpu::Sizes;
use crate::model::gpu::kernels::{AdalnGradient, Residual, adaln_backward, adaln_forward};
use crate::ops::cuda::{Buffer, Gpu};
use crate::ops::{gate_residual, rms_norm_modulate};

/// 1/rms of a row that was rounded to bf16.
const ALLOWED_RSTD: f64 = 1e-2;

pub fn adaln(gpu: &Arc<Gpu>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (batch, tokens, width) in [(2, 5, 264), (3, 35, 776)] {
        for branch in [true, false] {
            let s = Sizes {
                batch,
                tokens,
                width,
                ..NONE
            };
            rows.extend(one(gpu, &s, branch)?);
        }
    }
    Ok(rows)
}

fn one(gpu: &Gpu, s: &Sizes, branch: bool) -> Result<Vec<Row>> {
    let (b, n, c) = (s.batch, s.tokens, s.width);
    let map = || [b, n, c];
    let [x, h, dsum, dy] = [1, 2, 3, 4].map(|seed| Halves::new(gpu, seed, &map()));
    let (x, h, dsum, dy) = (x?, h?, dsum?, dy?);
    let modulations = Floats::new(gpu, 5, &[b, s.modulations()])?;
    let at = |which: usize| modulations.on_card.at(which * c);
    let out = || unwritten(gpu, s.rows() * c);
    let (sum, y, rstd) = (out()?, out()?, unwritten_f32(gpu, s.rows())?);
    let or_none = |address| if branch { address } else { 0 };
    let from = Residual {
        x: x.address(),
        branch: or_none(h.address()),
        gate: or_none(at(2)),
    };
    adaln_forward(
        gpu,
        s,
        from,
        [at(0), at(1)],
        sum.address(),
        y.address(),
        rstd.address(),
    )?;
    let (dx, dbranch) = (out()?, out()?);
    let partials = unwritten_f32(gpu, b * s.adaln_blocks() * 3 * c)?;
    let dmodulations = unwritten(gpu, b * s.modulations())?;
    let kept = AdalnGradient {
        dsum: dsum.address(),
        dy: dy.address(),
        x: if branch { sum.address() } else { x.address() },
        add: false,
        rstd: rstd.address(),
        scale: at(1),
        branch: or_none(h.address()),
        gate: or_none(at(2)),
        dx: dx.address(),
        dbranch: dbranch.address(),
        partials: partials.address(),
        dshift: dmodulations.at(0),
        dscale: dmodulations.at(c),
        dgate: or_none(dmodulations.at(2 * c)),
    };
    // What is compared with the reference comes from x before the branch, where there is one; from the sum comes the same.
    let from_sum = out()?;
    adaln_backward(
        gpu,
        s,
        &AdalnGradient {
            dx: from_sum.address(),
            ..kept
        },
    )?;
    adaln_backward(
        gpu,
        s,
        &AdalnGradient {
            x: x.address(),
            add: branch,
            ..kept
        },
    )?;

    let var = |x: &Tensor| Var::from_tensor(&x.contiguous()?);
    let (x_in, h_in) = (var(&x.values)?, var(&h.values)?);
    let [shift, scale, gate] = [0, 1, 2].map(|i| var(&modulations.values.narrow(1, i * c, c)?));
    let (shift, scale, gate) = (shift?, scale?, gate?);
    let sum_of = match branch {
        true => gate_residual(&x_in, &gate, &h_in)?,
        false => x_in.as_tensor().clone(),
    };
    let y_of = rms_norm_modulate(&sum_of, &shift, &scale, 1e-6)?;
    let loss = ((&sum_of * &dsum.values)? + (&y_of * &dy.values)?)?.sum_all()?;
    let gradients = loss.backward()?;
    let rms = ((sum_of.sqr()?.mean_keepdim(2)? + 1e-6)?.sqrt()?).recip()?;

    let kind = if branch { "a branch" } else { "no branch" };
    let name = |what: &str| format!("adaln, {b}×{n} rows of {c}, {kind}: {what}");
    let mut rows = vec![
        compare(name("y"), &y, &flat(&y_of)?)?,
        compare_f32(name("1/rms"), &rstd, &flat(&rms)?, ALLOWED_RSTD)?,
        compare(name("gradient of x"), &dx, &gradient(&gradients, &x_in)?)?,
    ];
    // The modulations' gradients, out of rows of all modulations.
    let stride = s.modulations();
    let part = |which: usize| -> Result<Vec<f32>> {
        let all = dmodulations.read()?;
        let row = |image: usize| &all[image * stride + which * c..][..c];
        Ok((0..b).flat_map(row).map(|x| x.to_f32()).collect())
    };
    let mut modulation = |what: &str, which: usize, of: &Var| -> Result<()> {
        let found = super::relative(&part(which)?, &gradient(&gradients, of)?);
        rows.push(super::kernel::row(name(what), found, 1e-2));
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
        let differ = super::share_that_differs(&bits(&dx)?, &bits(&from_sum)?);
        let what =
            "gradient of x with the branch added once more, bits that differ from that of the sum";
        rows.push(super::kernel::row(name(what), differ, 0.0));
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
