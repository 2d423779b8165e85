//! The CPU's side: rows times the packed weight, a block of rows at a time.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

use crate::ops::product::{Frozen, Packed, Panels, Plain, outer, times};
use crate::ops::slices;

/// A linear layer: (x, weight) or (x, weight, bias) to y.
pub(super) struct Linear {
    pub inputs: usize,
    pub outputs: usize,
    /// Of a weight that does not change.
    pub packed: Option<Packed>,
}

/// Rows that belong together, x [..,rows,I]: no row's bits depend on those of another unit.
pub(in crate::ops) fn unit(x: &[usize]) -> usize {
    match x {
        [.., rows, _] if x.len() > 2 => *rows,
        _ => 1,
    }
}

impl Linear {
    fn forward(
        &self,
        (x, layout): (&CpuStorage, &Layout),
        (weight, weight_layout): (&CpuStorage, &Layout),
        bias: Option<&[f32]>,
    ) -> Result<(CpuStorage, Shape)> {
        let x = slices::of(x, layout)?;
        let weight = slices::of(weight, weight_layout)?;
        let &Self {
            inputs, outputs, ..
        } = self;
        let y = match &self.packed {
            Some(packed) => Frozen {
                weight,
                outputs,
                inputs,
                unit: unit(layout.dims()),
                packed,
            }
            .times(x, bias),
            None => {
                let panels = Panels::of_outputs(weight, outputs, inputs, 1);
                times(&Plain::new(x, inputs), &panels, bias)
            }
        };
        let mut shape = layout.dims().to_vec();
        shape.pop();
        shape.push(self.outputs);
        Ok((CpuStorage::F32(y), shape.into()))
    }

    fn backward(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let Self {
            inputs, outputs, ..
        } = *self;
        slices::read([x, weight, grad], |[xs, ws, grads]| {
            let dx = match x.track_op() {
                true => {
                    let panels = Panels::of_rows(ws, inputs);
                    let dx = times(&Plain::new(grads, outputs), &panels, None);
                    Some(Tensor::from_vec(dx, x.shape(), x.device())?)
                }
                false => None,
            };
            let bias = bias.is_some_and(|bias| bias.track_op());
            if !weight.track_op() && !bias {
                return Ok([dx, None, None]);
            }
            let (dw, db) = outer(&Plain::new(xs, inputs), grads, outputs);
            let dw = Tensor::from_vec(dw, weight.shape(), x.device())?;
            let db = Tensor::from_vec(db, outputs, x.device())?;
            Ok([dx, weight.track_op().then_some(dw), bias.then_some(db)])
        })?
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward((x, x_layout), (weight, weight_layout), None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dx, dw, _] = self.backward(x, weight, None, grad)?;
        Ok((dx, dw))
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let bias = slices::of(bias, bias_layout)?;
        self.forward((x, x_layout), (weight, weight_layout), Some(bias))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dx, dw, db] = self.backward(x, weight, Some(bias), grad)?;
        Ok((dx, dw, db))
    }
}
