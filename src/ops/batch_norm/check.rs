//! Checks the kernels of batch normalization in training, including the statistics, and with given
//! moments.

use candle_core::{Device, Result};

use super::{batch_norm, batch_norm_inference};
use crate::ops::Activation;
use crate::ops::cuda::Gpu;
use crate::ops::cuda::compare::{ALLOWED_F32, Row, compare, random, relative};

pub fn check(gpu: &Gpu) -> Result<Vec<Row>> {
    let leaky = Activation::LeakyRelu(0.2);
    let mut rows = Vec::new();
    for (shape, activation) in [
        ([2, 2, 3, 3], leaky),
        ([3, 5, 7, 96], leaky),
        ([4, 15, 13, 65], Activation::None),
        ([5, 61, 67, 128], leaky),
    ] {
        let c = shape[3];
        let x = ((random(1, &shape)? * 2.0)? + 1.0)?;
        let weights = [(random(2, &[c])? + 1.0)?, random(3, &[c])?];
        let name = format!("batch_norm {shape:?}, {activation:?}");
        rows.extend(compare(
            gpu,
            &name,
            std::slice::from_ref(&x),
            &weights,
            |maps, w| Ok(batch_norm(&maps[0], &w[0], &w[1], 1e-5, activation)?.0),
        )?);

        let there = Device::Cuda(gpu.device().clone());
        let (_, mean, variance) = batch_norm(&x, &weights[0], &weights[1], 1e-5, activation)?;
        let (x_there, w) = (x.to_device(&there)?, weights[0].to_device(&there)?);
        let b = weights[1].to_device(&there)?;
        let (_, mean_there, variance_there) = batch_norm(&x_there, &w, &b, 1e-5, activation)?;
        let given = |x, mean, variance, w, b| {
            batch_norm_inference(x, mean, variance, w, b, 1e-5, activation)
        };
        let squares = mean.sqr()?;
        let expected = given(&x, &variance, &squares, &weights[0], &weights[1])?;
        let (squares_there, variances) = (squares.to_device(&there)?, variance.to_device(&there)?);
        let found = given(&x_there, &variances, &squares_there, &w, &b)?;
        for (part, found, expected) in [
            ("mean", &mean_there, &mean),
            ("variance", &variance_there, &variance),
            ("by given moments", &found, &expected),
        ] {
            rows.push(Row {
                name: format!("{name}: {part}"),
                error: relative(found, expected)?,
                allowed: ALLOWED_F32,
            });
        }
    }
    Ok(rows)
}
