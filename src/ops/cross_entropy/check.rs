//! Checks the cross-entropy's kernels, one per range of K.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor, Var};

use super::cross_entropy as reference;
use super::cuda::cross_entropy;
use crate::ops::cuda::compare::Row;
use crate::ops::cuda::operands::{
    ALLOWED_F32, Halves, compare, compare_f32, flat, row, share_that_differs, unwritten_f32,
};
use crate::ops::cuda::{Buffer, Gpu};

const SCALE: f32 = 0.37;

pub fn check(gpu: &Arc<Gpu>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for codes in [24, 2056, 4104, 8200] {
        let logits = Halves::new(gpu, codes as u64, &[3, codes])?;
        // The first row's likeliest code, and two others.
        let likeliest = logits.values.argmax(1)?.to_vec1::<u32>()?[0];
        let targets = [likeliest, 5, codes as u32 - 1];
        let there = Buffer::from_host(gpu, &targets)?;
        let (loss, hits) = (unwritten_f32(gpu, 3)?, Buffer::from_host(gpu, &[9u32; 3])?);
        cross_entropy(
            gpu,
            [3, codes],
            logits.view_mut(),
            there.view(),
            loss.view_mut(),
            hits.view_mut(),
            SCALE,
        )?;

        let var = Var::from_tensor(&logits.values)?;
        let expected = reference(&var, &Tensor::new(&targets, &Device::Cpu)?)?;
        let gradients = (expected.loss.sum_all()? * f64::from(SCALE))?.backward()?;
        let gradient = gradients.get(&var).map_or(Ok(Vec::new()), flat)?;
        let name = |what: &str| format!("cross-entropy, {codes} codes: {what}");
        let correct = expected.correct.to_vec1::<u32>()?;
        rows.extend([
            compare_f32(name("loss"), &loss, &flat(&expected.loss)?, ALLOWED_F32)?,
            row(
                name("hits, share that differs"),
                share_that_differs(&hits.read()?, &correct),
                0.0,
            ),
            compare(name("gradient of the logits"), &logits.on_gpu, &gradient)?,
        ]);
    }
    Ok(rows)
}
